// Products of packed rows: the loop over their depth, for every kernel of the pooled similarity.
//
// A block has WARPS_M·WARPS_N warps, and its tile is [16·M·WARPS_M, 64·WARPS_N]: each warp sums [16·M, 64] of it.
#pragma once

#include "pooled.h"
#include "tile.cuh"

namespace emcl {
namespace pooled {
namespace {

// What float32 numbers become for the tensor cores: sums of bfloat16, of which two keep 16 bits and three all, or, in
// rows that were brought to about 2^14 first, of float16, of which two keep 22.
using Split = Parts<BFloat16, 2>;
using Exact = Parts<BFloat16, 3>;
using Scaled = Parts<Float16, 2>;

// The rows of a call multiplied by each other, and by float32 matrices.
template <class E>
using RowParts = std::conditional_t<std::is_same_v<E, float>, Scaled, Parts<E, 1>>;
template <class E>
using ExactParts = std::conditional_t<std::is_same_v<E, BFloat16>, Parts<BFloat16, 1>, Exact>;
// Small float32 matrices beside such rows: bfloat16 rows are no more exact than two parts. See small_parts.
template <class Rows>
using SmallParts = std::conditional_t<std::is_same_v<Rows, Parts<BFloat16, 1>>, Split, Exact>;

template <class P>
__device__ __forceinline__ void split_in_parts(float first, float second, uint32_t (&parts)[P::count]) {
  if constexpr (std::is_same_v<P, Scaled>) {
    parts[0] = pack<Float16>(first, second);
    parts[1] = pack<Float16>(first - half_to_float(uint16_t(parts[0])), second - half_to_float(uint16_t(parts[0] >> 16)));
  } else {
    split_pair<P>(first, second, parts);
  }
}

constexpr float kTiny = 1e-12f;  // shortest length that a vector is divided by

// Into columns `column` and `column + 1` of a matrix; column is even.
template <class P>
__device__ __forceinline__ void store_pair(const Matrix16& to, int64_t row, int64_t column, float first, float second) {
  uint32_t parts[P::count];
  split_in_parts<P>(first, second, parts);
#pragma unroll
  for (int part = 0; part < P::count; ++part)
    *reinterpret_cast<uint32_t*>(to.numbers + part * to.part + row * to.stride + column) = parts[part];
}

// In as many parts as the matrix has, two or three.
__device__ __forceinline__ void store_pair(const Matrix16& to, int64_t row, int64_t column, float first, float second) {
  if (to.parts == 2)
    store_pair<Split>(to, row, column, first, second);
  else
    store_pair<Exact>(to, row, column, first, second);
}

__device__ __forceinline__ float number(const Matrix16& x, int64_t row, int64_t column) {
  float sum = 0;
  for (int part = 0; part < x.parts; ++part)
    sum += widen(BFloat16{x.numbers[part * x.part + row * x.stride + column]});
  return sum;
}

// One operand in memory. Row i of a tile is row `row(i)` of the matrix, or zeros where that is negative; where the depth
// runs along the rows, i is counted from the start of the depth. Numbers at `columns` and beyond are zeros.
template <class Row>
struct Operand {
  Matrix16 matrix;
  int columns;
  Row row;
};
template <class Row>
__device__ Operand(Matrix16, int, Row) -> Operand<Row>;

// Copies an operand into tiles, step by step of the depth.
template <Depth DEPTH, class P, int ROWS, int COLUMNS, int THREADS, class Row>
class Supply {
 public:
  using Target = Tile<P, ROWS, COLUMNS>;

  __device__ __forceinline__ Supply(const Operand<Row>& operand, int depth) : operand_(operand), depth_(depth) {
    if constexpr (DEPTH == Depth::columns)
#pragma unroll
      for (int i = 0; i < kOwn; ++i) own_[i] = operand.row(own_row(i));
  }
  // Step `first` to first + the tile's depth - 1. To be followed by copies_commit.
  __device__ __forceinline__ void start(const Target& tile, int first) const {
    const int column = int(threadIdx.x) % kPerRow * 8 + (DEPTH == Depth::columns ? first : 0);
    const bool wanted = column < (DEPTH == Depth::columns ? depth_ : operand_.columns);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int row = own_row(i);
      int from;
      if constexpr (DEPTH == Depth::columns)
        from = own_[i];
      else
        from = first + row < depth_ ? operand_.row(first + row) : -1;
      const bool inside = wanted && from >= 0;
      const uint16_t* piece = operand_.matrix.numbers + (inside ? int64_t(from) * operand_.matrix.stride + column : 0);
#pragma unroll
      for (int part = 0; part < P::count; ++part)
        copy_async(tile.at(part, row, int(threadIdx.x) % kPerRow * 8), piece + (inside ? part * operand_.matrix.part : 0), inside);
    }
  }

 private:
  static constexpr int kPerRow = COLUMNS / 8, kRowStep = THREADS / kPerRow, kOwn = ROWS / kRowStep;
  static_assert(THREADS % kPerRow == 0 && ROWS % kRowStep == 0);
  static __device__ __forceinline__ int own_row(int i) { return int(threadIdx.x) / kPerRow + i * kRowStep; }

  const Operand<Row> operand_;
  const int depth_;
  int own_[DEPTH == Depth::columns ? kOwn : 1];
};

template <class LEFT_PARTS, Depth LEFT, class RIGHT_PARTS, Depth RIGHT, int M_, int WARPS_M_, int WARPS_N_, int STAGES>
struct TileProduct {
  static constexpr int M = M_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_;
  static constexpr int kThreads = 32 * WARPS_M * WARPS_N, kRows = 16 * M * WARPS_M, kColumns = kGroup * WARPS_N;
  static constexpr int kStep = 32, kStages = STAGES;
  using LeftParts = LEFT_PARTS;
  static constexpr bool kLong = LEFT_PARTS::count > 1 || RIGHT_PARTS::count > 1;
  static constexpr int kLeftRows = LEFT == Depth::columns ? kRows : kStep, kLeftColumns = LEFT == Depth::columns ? kStep : kRows;
  static constexpr int kRightRows = RIGHT == Depth::columns ? kColumns : kStep, kRightColumns = RIGHT == Depth::columns ? kStep : kColumns;
  using LeftTile = Tile<LEFT_PARTS, kLeftRows, kLeftColumns>;
  using RightTile = Tile<RIGHT_PARTS, kRightRows, kRightColumns>;
  static constexpr int kStage = LeftTile::kBytes + RightTile::kBytes, kBytes = kStages * kStage;

  static __device__ __forceinline__ int warp_m() { return warp_of() % WARPS_M; }
  static __device__ __forceinline__ int warp_n() { return warp_of() / WARPS_M; }

  // sums += the product; `memory` has kBytes and is free again when it returns. EXACT: the tensor cores' own sums are
  // kept short.
  template <bool EXACT, class LeftRow, class RightRow>
  static __device__ __forceinline__ void run(char* memory, float (&sums)[M][8][4], const Operand<LeftRow>& left,
                                             const Operand<RightRow>& right, int depth) {
    const Supply<LEFT, LEFT_PARTS, kLeftRows, kLeftColumns, kThreads, LeftRow> lefts(left, depth);
    const Supply<RIGHT, RIGHT_PARTS, kRightRows, kRightColumns, kThreads, RightRow> rights(right, depth);
    const auto left_tile = [&](int step) { return LeftTile(memory + step % kStages * kStage); };
    const auto right_tile = [&](int step) { return RightTile(memory + step % kStages * kStage + LeftTile::kBytes); };
    const int steps = (depth + kStep - 1) / kStep;
    constexpr int kFlushSteps = kFlushDepth<std::conditional_t<(LEFT_PARTS::count > 1), LEFT_PARTS, RIGHT_PARTS>> / kStep;
    float recent[EXACT ? M : 1][8][4] = {};
    each_step<kStages, false>(
        steps,
        [&](int step) {
          lefts.start(left_tile(step), step * kStep);
          rights.start(right_tile(step), step * kStep);
        },
        [](int) {},
        [&](int step) {
#pragma unroll
          for (int part = 0; part < kStep; part += 16) {
            const LeftTile a = left_tile(step);
            const RightTile b = right_tile(step);
            if constexpr (EXACT)
              multiply_tiles<LEFT, RIGHT>(recent, a, warp_m() * 16 * M, b, warp_n() * kGroup, part, part);
            else
              multiply_tiles<LEFT, RIGHT>(sums, a, warp_m() * 16 * M, b, warp_n() * kGroup, part, part);
          }
          if constexpr (EXACT)
            if ((step + 1) % kFlushSteps == 0) flush(sums, recent);
        });
    if constexpr (EXACT) flush(sums, recent);
    copies_wait<0>();
    __syncthreads();
  }
};

// Texts by frames.
template <class P>
using LargeTile = TileProduct<P, Depth::columns, P, Depth::columns, 2, 4, 2, P::count == 2 ? 2 : 4>;
template <class P>
using SmallTile = TileProduct<P, Depth::columns, P, Depth::columns, 1, 2, 1, P::count == 2 ? 3 : 4>;
// 16 texts of each warp by frames, both in the bases.
template <class P, class Parts = SmallParts<typename P::LeftParts>>
using BasesTile = TileProduct<Parts, Depth::columns, Parts, Depth::columns, 1, P::WARPS_M, P::WARPS_N, 2>;
constexpr int kSmallBlock = 64;  // texts of a problem for which the small tile is used

}  // namespace
}  // namespace pooled
}  // namespace emcl
