// Products of packed rows: the loop over their depth, for every kernel of the pooled similarity.
//
// A block has WARPS_M·WARPS_N warps, and its tile is [16·M·WARPS_M, 64·WARPS_N]: each warp sums [16·M, 64] of it.
#pragma once

#include "cuda/pooled/pooled.h"
#include "cuda/tile/tile.cuh"

namespace emcl {
namespace pooled {
namespace {

// ---- numbers ----

// What float32 numbers become for the tensor cores: sums of bfloat16, of which two keep 16 bits and three all; or of
// float16, of which two keep 22 bits in as many products as two of bfloat16 take, where numbers were scaled to its
// range.
using Split = Parts<BFloat16, 2>;
using Exact = Parts<BFloat16, 3>;
using Scaled = Parts<Float16, 2>;

// Rows as they are multiplied by each other, and by float32 matrices: see PackedRows.
template <class E>
using OwnRows = std::conditional_t<std::is_same_v<E, float>, Scaled, Parts<E, 1>>;
template <class E>
using ExactRows = std::conditional_t<std::is_same_v<E, BFloat16>, Parts<BFloat16, 1>, Exact>;
// Small float32 matrices beside such OwnRows; `small_parts` on the host. What bfloat16 rounds away hides what two parts
// do.
template <class Rows>
using SmallParts = std::conditional_t<std::is_same_v<Rows, Parts<BFloat16, 1>>, Split, Exact>;

// To the place `at` of a matrix and the one behind it, in `count` of the parts; `at` is even. All addresses follow from
// one, because in a kernel that stores often their code would be a tenth of all.
template <class P>
__device__ __forceinline__ void store_pair_at(const Matrix16& to, int64_t at, float first, float second,
                                              int count = P::count) {
  uint32_t parts[P::count];
  split_pair<P>(first, second, parts);
  uint16_t* own = to.numbers + at;
#pragma unroll
  for (int part = 0; part < P::count; ++part, own += to.part)
    if (part < count) *reinterpret_cast<uint32_t*>(own) = parts[part];
}

// Into columns `column` and `column + 1` of a row; column is even.
template <class P>
__device__ __forceinline__ void store_pair(const Matrix16& to, int64_t row, int64_t column, float first, float second) {
  store_pair_at<P>(to, row * to.stride + column, first, second);
}
// In as many parts as the matrix has, two or three.
__device__ __forceinline__ void store_pair(const Matrix16& to, int64_t row, int64_t column, float first, float second) {
  store_pair_at<Exact>(to, row * to.stride + column, first, second, to.parts);
}

// To columns `column` and `column + 1` of rows of `columns` numbers, where those exist; added to what is there or not.
__device__ __forceinline__ void write_pair(float* row, int column, int columns, float first, float second, bool add) {
  if (columns % 2 == 0 && column < columns) {
    float2& both = *reinterpret_cast<float2*>(row + column);
    both = add ? make_float2(both.x + first, both.y + second) : make_float2(first, second);
  } else {
    if (column < columns) row[column] = first + (add ? row[column] : 0.0f);
    if (column + 1 < columns) row[column + 1] = second + (add ? row[column + 1] : 0.0f);
  }
}

// Of bfloat16 parts.
__device__ __forceinline__ float number(const Matrix16& x, int64_t row, int64_t column) {
  float sum = 0;
  for (int part = 0; part < x.parts; ++part) sum += widen(BFloat16{x.numbers[part * x.part + row * x.stride + column]});
  return sum;
}

// ---- products ----

// One operand of a tile's product: row i is row `row(i)` of the matrix, or zeros where that is negative. Where the
// depth runs along the rows, i counts them from the start, and columns from `columns` on are zeros.
template <class Row>
struct Operand {
  Matrix16 matrix;
  Row row;
  int columns = 0;
};
template <class Row>
__device__ Operand(Matrix16, Row) -> Operand<Row>;
template <class Row>
__device__ Operand(Matrix16, Row, int) -> Operand<Row>;

// Copies an operand into tiles, one step of the depth after the other.
template <Depth DEPTH, class P, int ROWS, int COLUMNS, int THREADS, class Row>
class Supply {
 public:
  using Target = Tile<P, ROWS, COLUMNS>;

  __device__ __forceinline__ Supply(const Operand<Row>& operand, int depth) : operand_(operand), depth_(depth) {
    if constexpr (DEPTH == Depth::columns)
#pragma unroll
      for (int i = 0; i < kOwn; ++i) own_[i] = operand.row(own_row(i));
  }
  // The depth from `first` on. To be followed by copies_commit.
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
        copy_async(tile.at(part, row, int(threadIdx.x) % kPerRow * 8),
                   piece + (inside ? part * operand_.matrix.part : 0), inside);
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

// Left is [rows, depth] and right [depth, columns], each with its depth along the columns or the rows in memory.
template <class LEFT_PARTS, Depth LEFT, class RIGHT_PARTS, Depth RIGHT, int M_, int WARPS_M_, int WARPS_N_, int STAGES>
struct TileProduct {
  static constexpr int M = M_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_;
  static constexpr int kThreads = 32 * WARPS_M * WARPS_N, kRows = 16 * M * WARPS_M, kColumns = kGroup * WARPS_N;
  // of the depth; numbers of one part are multiplied so quickly that steps must be longer
  static constexpr int kStep = LEFT_PARTS::count * RIGHT_PARTS::count == 1 ? 64 : 32, kStages = STAGES;
  using LeftParts = LEFT_PARTS;
  static constexpr int kLeftRows = LEFT == Depth::columns ? kRows : kStep,
                       kLeftColumns = LEFT == Depth::columns ? kStep : kRows;
  static constexpr int kRightRows = RIGHT == Depth::columns ? kColumns : kStep,
                       kRightColumns = RIGHT == Depth::columns ? kStep : kColumns;
  using LeftTile = Tile<LEFT_PARTS, kLeftRows, kLeftColumns>;
  using RightTile = Tile<RIGHT_PARTS, kRightRows, kRightColumns>;
  static constexpr int kStage = LeftTile::kBytes + RightTile::kBytes, kBytes = kStages * kStage;

  static __device__ __forceinline__ int warp_m() { return warp_of() % WARPS_M; }
  static __device__ __forceinline__ int warp_n() { return warp_of() / WARPS_M; }

  // sums += the product; `memory` has kBytes and is free again when it returns. FLUSH: the tensor cores' own sums are
  // kept short, in registers of their own.
  template <bool FLUSH, class LeftRow, class RightRow>
  static __device__ __forceinline__ void run(char* memory, float (&sums)[M][8][4], const Operand<LeftRow>& left,
                                             const Operand<RightRow>& right, int depth) {
    const Supply<LEFT, LEFT_PARTS, kLeftRows, kLeftColumns, kThreads, LeftRow> lefts(left, depth);
    const Supply<RIGHT, RIGHT_PARTS, kRightRows, kRightColumns, kThreads, RightRow> rights(right, depth);
    const auto left_tile = [&](int step) { return LeftTile(memory + step % kStages * kStage); };
    const auto right_tile = [&](int step) { return RightTile(memory + step % kStages * kStage + LeftTile::kBytes); };
    const int steps = (depth + kStep - 1) / kStep;
    constexpr int kFlushSteps =
        kFlushDepth<std::conditional_t<(LEFT_PARTS::count > 1), LEFT_PARTS, RIGHT_PARTS>> / kStep;
    float recent[FLUSH ? M : 1][8][4] = {};
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
            if constexpr (FLUSH)
              multiply_tiles<LEFT, RIGHT>(recent, a, warp_m() * 16 * M, b, warp_n() * kGroup, part, part);
            else
              multiply_tiles<LEFT, RIGHT>(sums, a, warp_m() * 16 * M, b, warp_n() * kGroup, part, part);
          }
          if constexpr (FLUSH)
            if ((step + 1) % kFlushSteps == 0) flush(sums, recent);
        });
    if constexpr (FLUSH) flush(sums, recent);
    copies_wait<0>();
    __syncthreads();
  }
};

// Texts by frames.
constexpr int kSmallBlock = 64;  // texts of a problem for which the small tile is used
template <class P>
using LargeTile = TileProduct<P, Depth::columns, P, Depth::columns, 2, 4, 2, P::count == 2 ? 2 : 3>;
template <class P>
using SmallTile = TileProduct<P, Depth::columns, P, Depth::columns, 1, 2, 1, 3>;
// The same for 16 texts of each warp, both sides in the bases.
template <class P, class Parts = SmallParts<typename P::LeftParts>>
using BasesTile = TileProduct<Parts, Depth::columns, Parts, Depth::columns, 1, P::WARPS_M, P::WARPS_N, 2>;

}  // namespace
}  // namespace pooled
}  // namespace emcl
