// Pieces of EM that its kernels share.
//
// What gram is multiplied with is p, the softmax, before it is divided by its column sums: these are known later, the
// division is a factor per column, and a factor per column passes through gram·p.
#pragma once

#include <cmath>

#include "cuda/fit/fit_plan.h"
#include "cuda/tile/number.cuh"

namespace emcl {
namespace {

// Sums over the lanes whose numbers differ in the bits from FIRST to LAST.
template <int FIRST, int LAST>
__device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
  for (int mask = FIRST; mask <= LAST; mask *= 2) x += shuffle_xor(x, mask);
  return x;
}
template <int FIRST, int LAST>
__device__ __forceinline__ float most_of_lanes(float x) {
#pragma unroll
  for (int mask = FIRST; mask <= LAST; mask *= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

// p = softmax of z over the bases of one channel, in place. 8 lanes share a channel: lane l has bases l, l + 8, ...
// Lanes beyond the last basis take no part and get zero: their logit of zero may lie above all others. Where z is a
// product it is a rounded one: fused with the difference, it would keep more digits than the largest of them has.
template <int TILES>
__device__ __forceinline__ void softmax(float (&z)[TILES], int l, int num_bases) {
  float most = -INFINITY, sum = 0;
#pragma unroll
  for (int i = 0; i < TILES; ++i)
    if (l + 8 * i < num_bases) most = fmaxf(most, z[i]);
  most = most_of_lanes<1, 4>(most);
#pragma unroll
  for (int i = 0; i < TILES; ++i) {
    z[i] = l + 8 * i < num_bases ? expf(z[i] - most) : 0.0f;
    sum += z[i];
  }
  const float inverse = 1.0f / sum_lanes<1, 4>(sum);
#pragma unroll
  for (int i = 0; i < TILES; ++i) z[i] *= inverse;
}

// Rounding may leave a basis of no length slightly below zero. A NaN stays, and a length that overflows is NaN too: its
// scale would be zero, and what is zero looks like a fit.
__device__ __forceinline__ float root(float squares) {
  const float length = sqrtf(squares < 0 ? 0.0f : squares);
  return length + (length - length);
}

// Sum over `count` shares [count, K] of a basis, by 8 lanes.
__device__ __forceinline__ float sum_of_shares(const float* shares, int count, int num_bases, int k, int l) {
  float sum = 0;
  for (int share = l; share < count; share += 8) sum += k < num_bases ? shares[int64_t(share) * num_bases + k] : 0.0f;
  return sum_lanes<1, 4>(sum);
}

// 4 numbers from `from` on, of which `count` are inside of the matrix; zero for the others.
__device__ __forceinline__ float4 load_four(const float* from, int count, bool aligned) {
  if (aligned && count >= 4) return *reinterpret_cast<const float4*>(from);
  float4 x = make_float4(0, 0, 0, 0);
  if (count > 0) x.x = from[0];
  if (count > 1) x.y = from[1];
  if (count > 2) x.z = from[2];
  if (count > 3) x.w = from[3];
  return x;
}

// x = high + low + at most 2^-22·|x|, both TF32.
__device__ __forceinline__ void split_tf32(float x, uint32_t& high, uint32_t& low) {
  high = round_tf32(x);
  low = round_tf32(x - as_float(high));
}

// Whether rows of `width` floats can be read 16 bytes at a time.
inline bool rows_are_aligned(const float* matrix, int64_t width) {
  return width % 4 == 0 && reinterpret_cast<uintptr_t>(matrix) % 16 == 0;
}

}  // namespace
}  // namespace emcl
