// Products of rows with thin float32 matrices, summed over the rows.
#pragma once

#include "kernels.h"

namespace emcl {

// (G0), one start per row: logits [P, D, K] = xᵀ·init for x [P, N, D], init [P, N, K]
void start_from_rows(const Call&, Element, const void* x, const float* init, Rows, int64_t num_bases, float* logits);

// x [P, N, D] and its thin matrix [P, N, K]
struct ThinPair {
  const void* x;
  const float* thin;
};
// [P, D, K] = xᵀ·thin of the first pair, plus that of the second unless its pointers are null. K from 1 to 128
void sum_over_rows(const Call&, Element, ThinPair first, ThinPair second, Rows, int64_t num_bases, float* sums);

}  // namespace emcl
