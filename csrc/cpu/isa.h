// The kernels of each instruction set: a table for every number type of the rows, in the order of Element.
#pragma once

#include "kernels.h"

namespace emcl {

extern const Kernels kBaseline[kElements];
#if defined(__x86_64__)
extern const Kernels kAvx2[kElements];
extern const Kernels kAvx512[kElements];
#endif

}  // namespace emcl
