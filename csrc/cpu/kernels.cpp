// The kernels for one instruction set. Compiled once for each, with the compiler flags of it.
#include "cpu/calls.h"
#include "cpu/isa.h"

namespace {

#define EMCL_ADDRESS(name) &Calls<E>::name,
template <class E>
constexpr emcl::Kernels kKernels{EMCL_FOR_EACH_KERNEL(EMCL_ADDRESS)};
#undef EMCL_ADDRESS

}  // namespace

namespace emcl {

#define EMCL_TABLE {kKernels<float>, kKernels<double>, kKernels<BFloat16>, kKernels<Float16>}

#if defined(__AVX512F__)
extern const Kernels kAvx512[kElements] = EMCL_TABLE;
#elif defined(__AVX2__)
extern const Kernels kAvx2[kElements] = EMCL_TABLE;
#else
extern const Kernels kBaseline[kElements] = EMCL_TABLE;
#endif

}  // namespace emcl
