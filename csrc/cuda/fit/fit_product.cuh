// gram·b or gramᵀ·b for a thin matrix b [D, columns], a block of rows at a time, on the tensor cores.
//
// The Gram matrix streams through shared memory in tiles of 64 channels. b is not read but made, 64 channels at a time:
// whoever calls says how. Each warp multiplies 8 of the 64 channels, for all rows and columns of the block, so nothing
// is read or taken apart twice; the warps' sums are added at the end, in their order. A product is three of TF32.
#pragma once

#include "cuda/fit/fit_common.cuh"

namespace emcl {
namespace {

// MT tiles of 16 rows, NT tiles of 8 columns.
template <int MT, int NT, bool TRANSPOSED>
struct ThinProduct {
  static constexpr int kRows = 16 * MT, kColumns = 8 * NT, kThreads = 32 * kFitWarps;
  static constexpr int kStages = step_stages(kRows), kPitch = step_pitch(kRows, TRANSPOSED);
  static constexpr int kTile = step_tile(kRows, TRANSPOSED), kThinPitch = bank_pitch(kColumns);
  static constexpr int kStreamed = step_streamed(kRows, NT, TRANSPOSED);
  static constexpr int kSlots = 2;  // channels of a thread in 64: 8 threads share a channel
  static_assert(4 * step_shared(kRows, NT, TRANSPOSED) <= int(kNeededShared));

  const float* gram;  // [D, D]
  int width, first;   // the block's rows of the result start here
  bool aligned;       // rows of gram to 16 bytes
  float* memory;      // kStreamed numbers

  // Makes the sums. Right has
  //   load(slot, channel)       starts to read what b's row is made of
  //   make(slot, channel, row)  makes it: the columns l, l + 8, ..., where l = thread % 8; zero beyond the last channel
  template <class Right>
  __device__ __forceinline__ void run(Right& right) const {
    const int thread = int(threadIdx.x), chunks = (width + kFitDepth - 1) / kFitDepth;
    float sums[MT][NT][4] = {};
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) {
      if (stage < chunks) copy_tile(stage, thread);
      copies_commit();
    }
    load_thin(right, 0, thread);
    make_thin(right, 0, thread);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (chunk + 1 < chunks) load_thin(right, chunk + 1, thread);
      copies_wait<kStages - 2>();
      __syncthreads();  // this chunk is there, and nobody reads the one before
      if (chunk + kStages - 1 < chunks) copy_tile(chunk + kStages - 1, thread);
      copies_commit();
      multiply(memory + chunk % kStages * kTile, thin(chunk), thread, sums);
      if (chunk + 1 < chunks) make_thin(right, chunk + 1, thread);
    }
    __syncthreads();
    float4* scratch = reinterpret_cast<float4*>(memory) + thread / 32 * MT * NT * 32 + thread % 32;
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int n = 0; n < NT; ++n)
        scratch[(m * NT + n) * 32] = make_float4(sums[m][n][0], sums[m][n][1], sums[m][n][2], sums[m][n][3]);
    __syncthreads();
  }

  // The result of all warps, as use(m, row, column, g): g.x, g.y belong to columns `column`, column + 1 of the block's
  // row `row`, g.z, g.w to those of row + 8, in tile m of 16 rows. All lanes of a warp have the same m.
  template <class Use>
  __device__ __forceinline__ void for_each(const Use& use) const {
    const float4* scratch = reinterpret_cast<const float4*>(memory);
    const int lane = int(threadIdx.x) % 32;
    for (int group = int(threadIdx.x) / 32; group < MT * NT; group += kFitWarps) {
      float4 g = scratch[group * 32 + lane];
#pragma unroll
      for (int warp = 1; warp < kFitWarps; ++warp) {
        const float4 more = scratch[(warp * MT * NT + group) * 32 + lane];
        g = make_float4(g.x + more.x, g.y + more.y, g.z + more.z, g.w + more.w);
      }
      use(group / NT, group / NT * 16 + lane / 4, group % NT * 8 + lane % 4 * 2, g);
    }
  }

 private:
  __device__ __forceinline__ float* thin(int chunk) const {
    return memory + kStages * kTile + chunk % 2 * kFitDepth * kThinPitch;
  }

  __device__ __forceinline__ void copy_tile(int chunk, int thread) const {
    constexpr int kAcross = (TRANSPOSED ? kRows : kFitDepth) / 4, kDown = TRANSPOSED ? kFitDepth : kRows;
    float* tile = memory + chunk % kStages * kTile;
#pragma unroll
    for (int i = thread; i < kAcross * kDown; i += kThreads) {
      const int row = (TRANSPOSED ? chunk * kFitDepth : first) + i / kAcross;
      const int column = (TRANSPOSED ? first : chunk * kFitDepth) + i % kAcross * 4;
      const bool inside = row < width && column < width;
      const float* from = gram + (inside ? int64_t(row) * width + column : 0);
      float* to = tile + i / kAcross * kPitch + i % kAcross * 4;
      if (aligned) {
        copy_async(to, from, inside);
      } else {
        *reinterpret_cast<float4*>(to) = load_four(from, inside ? width - column : 0, false);
      }
    }
  }

  template <class Right>
  __device__ __forceinline__ void load_thin(Right& right, int chunk, int thread) const {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) right.load(slot, chunk * kFitDepth + thread / 8 + slot * (kThreads / 8));
  }
  template <class Right>
  __device__ __forceinline__ void make_thin(Right& right, int chunk, int thread) const {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int place = thread / 8 + slot * (kThreads / 8);
      float row[NT];
      right.make(slot, chunk * kFitDepth + place, row);
      float* to = thin(chunk) + place * kThinPitch + thread % 8;
#pragma unroll
      for (int i = 0; i < NT; ++i) to[8 * i] = row[i];
    }
  }

  __device__ __forceinline__ void multiply(const float* tile, const float* thin, int thread,
                                           float (&sums)[MT][NT][4]) const {
    const int lane = thread % 32, depth = thread / 32 * 8;
    uint32_t right_high[NT][2], right_low[NT][2];
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        split_tf32(thin[(depth + lane % 4 + 4 * i) * kThinPitch + 8 * n + lane / 4], right_high[n][i], right_low[n][i]);
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      uint32_t left[4], high[4], low[4];
      if constexpr (TRANSPOSED) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          left[i] = as_bits(tile[(depth + lane % 4 + i / 2 * 4) * kPitch + 16 * m + lane / 4 + i % 2 * 8]);
      } else {
        load_matrices(left, tile + (16 * m + lane % 16) * kPitch + depth + lane / 16 * 4);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) split_tf32(as_float(left[i]), high[i], low[i]);
#pragma unroll
      for (int n = 0; n < NT; ++n) multiply_tf32(sums[m][n], low, right_high[n]);
#pragma unroll
      for (int n = 0; n < NT; ++n) multiply_tf32(sums[m][n], high, right_low[n]);
#pragma unroll
      for (int n = 0; n < NT; ++n) multiply_tf32(sums[m][n], high, right_high[n]);
    }
  }
};

// Calls f(MT, NT), as integral constants, for the tiles of a shape.
template <class F>
void with_step_tiles(const StepShape& shape, const F& f) {
  using std::integral_constant;
  const auto with_rows = [&](auto tall, auto tiles) {
    if (shape.rows == 16) return f(integral_constant<int, 1>(), tiles);
    if constexpr (tall() > 1) f(tall, tiles);
  };
  if (shape.tiles == 1) return with_rows(integral_constant<int, 4>(), integral_constant<int, 1>());
  if (shape.tiles == 2) return with_rows(integral_constant<int, 4>(), integral_constant<int, 2>());
  if (shape.tiles == 4) return with_rows(integral_constant<int, 4>(), integral_constant<int, 4>());
  if (shape.tiles == 8) return with_rows(integral_constant<int, 2>(), integral_constant<int, 8>());
  with_rows(integral_constant<int, 1>(), integral_constant<int, 16>());
}

}  // namespace
}  // namespace emcl
