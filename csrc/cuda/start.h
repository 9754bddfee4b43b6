// Products of rows with thin float32 matrices, summed over the rows.
#pragma once

#include "kernels.h"

namespace emcl {

// (G0), one start per row: logits [P, D, K] = xᵀ·init for x [P, N, D], init [P, N, K]
void start_from_rows(const Call&, Element, const void* x, const float* init, Rows, int64_t bases, float* logits);

}  // namespace emcl
