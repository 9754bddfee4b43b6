// Square matrices as products whose depth is all bases of all iterations: Σ_t d_g_t·r_tᵀ (docs/math.md, BM).
#pragma once

#include "cuda/fit/fit_common.cuh"
#include "cuda/tile/tile.cuh"

namespace emcl {
namespace {

constexpr int kSide = 64;    // of a tile of the result
constexpr int kDepth = 32;   // of both factors at a time
constexpr int kDeepest = 2;  // of these depths are added up by the tensor cores, whose sums round towards zero
constexpr int kFactorPitch = kDepth + 4, kFactor = kSide * kFactorPitch, kFactorStages = 3;

// out [P, D, D] = left·rightᵀ for left, right [P, D, depth]: 64 x 64 numbers a block, 16 x 32 a warp.
__global__ void __launch_bounds__(32 * kFitWarps)
    fit_deep_product_kernel(const float* left, const float* right, int width, int depth, int tiles, float* out) {
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int64_t problem = blockIdx.x / unsigned(tiles * tiles);
  const int tile = int(blockIdx.x % unsigned(tiles * tiles));
  const int first = tile / tiles * kSide, across = tile % tiles * kSide;
  float* memory = reinterpret_cast<float*>(dynamic_shared());
  left += problem * width * depth;
  right += problem * width * depth;

  const auto start = [&](int64_t step) {
    float* to = memory + step % kFactorStages * 2 * kFactor;
#pragma unroll
    for (int i = thread; i < kSide * kDepth / 4; i += 32 * kFitWarps) {
      const int row = i / (kDepth / 4), column = i % (kDepth / 4) * 4, at = int(step) * kDepth + column;
      const auto copy = [&](const float* from, int channel, float* to) {
        const bool inside = channel < width && at < depth;
        copy_async(to + row * kFactorPitch + column, from + (inside ? int64_t(channel) * depth + at : 0), inside);
      };
      copy(left, first + row, to);
      copy(right, across + row, to + kFactor);
    }
  };
  float sums[1][4][4] = {}, total[1][4][4] = {};
  each_step<kFactorStages, false>(
      (depth + kDepth - 1) / kDepth, start, [](int64_t) {},
      [&](int64_t step) {
        const float* tile_left = memory + step % kFactorStages * 2 * kFactor + warp / 2 * 16 * kFactorPitch;
        const float* tile_right = memory + step % kFactorStages * 2 * kFactor + kFactor + warp % 2 * 32 * kFactorPitch;
#pragma unroll
        for (int at = 0; at < kDepth; at += 8) {
          uint32_t bits[4], high[4], low[4];
          load_matrices(bits, tile_left + lane % 16 * kFactorPitch + at + lane / 16 * 4);
#pragma unroll
          for (int i = 0; i < 4; ++i) split_tf32(as_float(bits[i]), high[i], low[i]);
#pragma unroll
          for (int n = 0; n < 4; n += 2) {  // 16 channels at once
            uint32_t right_high[2][2], right_low[2][2];
            load_matrices(bits, tile_right + (8 * n + lane / 16 * 8 + lane % 8) * kFactorPitch + at + lane / 8 % 2 * 4);
#pragma unroll
            for (int i = 0; i < 4; ++i)
              split_tf32(as_float(bits[i]), right_high[i / 2][i % 2], right_low[i / 2][i % 2]);
#pragma unroll
            for (int j = 0; j < 2; ++j) multiply_tf32(sums[0][n + j], low, right_high[j]);
#pragma unroll
            for (int j = 0; j < 2; ++j) multiply_tf32(sums[0][n + j], high, right_low[j]);
#pragma unroll
            for (int j = 0; j < 2; ++j) multiply_tf32(sums[0][n + j], high, right_high[j]);
          }
        }
        if (step % kDeepest == kDeepest - 1) flush(total, sums);
      });
  flush(total, sums);
#pragma unroll
  for (int n = 0; n < 4; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first + warp / 2 * 16 + sum_row(i), column = across + warp % 2 * 32 + 8 * n + sum_column(i);
      if (row < width && column < width) out[(problem * width + row) * width + column] = total[0][n][i];
    }
}

// depth: a multiple of 4, and both factors are aligned to 16 bytes.
inline void multiply_deep(const Call& call, const float* left, const float* right, int64_t problems, int64_t width,
                          int64_t depth, float* out) {
  const int64_t tiles = (width + kSide - 1) / kSide;
  const Launch blocks{.x = unsigned(problems * tiles * tiles),
                      .threads = 32 * kFitWarps,
                      .shared = size_t(kFactorStages) * 2 * kFactor * sizeof(float)};
  launch(call.stream, blocks, fit_deep_product_kernel, left, right, int(width), int(depth), int(tiles), out);
}

}  // namespace
}  // namespace emcl
