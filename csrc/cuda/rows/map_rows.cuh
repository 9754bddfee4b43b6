// What one warp does for 16 rows x of a problem: c = x·r, and y = x + (c·scale·weight)·rᵀ.
//
// No thread ever needs what another one fetched: in both products the channels of a fragment may come in any order, and
// they are taken so that the 16 bytes which a thread fetches are its own numbers of the left fragment of x·r, and later
// its own sums of the second product.
#pragma once

#include "cuda/tile/tile.cuh"

namespace emcl {
namespace {

constexpr int kUnit = 32;  // channels taken at a time

// What a launch is to compute. x [P, N, D], r [P, D, K], scale [P, K]
template <class E>
struct Task {
  const E* x;
  const float *r, *scale;
  Rows shape;
  int num_bases;
  float weight;
  bool wide;            // rows may be accessed by 16 bytes
  E* y;                 // [P, N, D], or null
  float* coefficients;  // [P, N, K], x·r, or null
};

// BASES: K, padded.
template <class E, int COUNT, int BASES>
struct Thin {
  using Numbers = BfloatParts<E, COUNT>;
  using Unit = Tile<Numbers, kUnit, BASES>;  // r for one unit, its channels by their position in fragments
  static constexpr int kSize = Piece<E>::kSize;
  static constexpr int kPieces = kUnit / (2 * kSize);  // of a thread and a unit
  static constexpr int kRowBytes = kPieces * 32 * 16;  // of a warp's rows and a unit
};

// Position of a fragment's row or column in its unit → channel of the unit.
template <class E>
__device__ __forceinline__ int channel_at(int position) {
  constexpr int kSize = Piece<E>::kSize;
  const int step = position / 16, own = position % 16;
  return step * 4 / kSize * 16 + own % 8 / 2 * kSize + step * 4 % kSize + own / 8 * 2 + own % 2;
}

// Units `first` to `last` of a problem's r, by all threads of the block. Several numbers are read before any is
// written, so that they are on their way together.
template <class E, class U>
__device__ __forceinline__ void write_units(uint16_t* units, const float* r, int64_t width, int num_bases, int first,
                                            int last) {
  constexpr int kPairs = (U::kPitch - 8) / 2, kTogether = 8;  // pairs of bases, in a row of r and at a time
  const int step = int(blockDim.x), end = last * kUnit * kPairs;
  for (int i = first * kUnit * kPairs + int(threadIdx.x); i < end; i += kTogether * step) {
    float pairs[kTogether][2];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int own = i + j * step, position = own / kPairs, base = own % kPairs * 2;
      const int64_t channel = position / kUnit * kUnit + channel_at<E>(position % kUnit);
      const bool inside = own < end && channel < width;
      pairs[j][0] = inside && base < num_bases ? r[channel * num_bases + base] : 0.0f;
      pairs[j][1] = inside && base + 1 < num_bases ? r[channel * num_bases + base + 1] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int own = i + j * step, position = own / kPairs;
      const U unit(units + (position / kUnit - first) * (U::kBytes / 2));
      if (own < end) put(unit, position % kUnit, own % kPairs * 2, pairs[j][0], pairs[j][1]);
    }
  }
}

// This thread's part of a warp's 16 rows: every fourth piece of rows sum_row(0) and sum_row(2). A unit's pieces are
// those of the two rows in turn; in shared memory they are 512 bytes apart.
template <class T, class E>
struct WarpRows {
  int64_t row;  // the warp's first, in its problem
  const E* from[2];
  E* to[2];
  int channels[2];  // from the first piece on; none beyond the last row

  __device__ __forceinline__ WarpRows(const Task<E>& task, int64_t problem, int64_t first) : row(first) {
    const int column = lane_of() % 4 * T::kSize;
    for (int i = 0; i < 2; ++i) {
      const int64_t own = first + sum_row(2 * i);
      const int64_t offset = (problem * task.shape.rows + own) * task.shape.width + column;
      from[i] = task.x + offset;
      to[i] = task.y + offset;
      channels[i] = own < task.shape.rows ? int(task.shape.width) - column : 0;
    }
  }
  static __device__ __forceinline__ int channel(int unit, int piece) { return unit * kUnit + piece / 2 * 4 * T::kSize; }

  __device__ __forceinline__ void fetch(char* slot, int unit, bool wide) const {
#pragma unroll
    for (int i = 0; i < T::kPieces; ++i) {
      const E* own = from[i % 2] + channel(unit, i);
      const int count = channels[i % 2] - channel(unit, i);
      if (wide)
        copy_async(slot + i * 512, own, count > 0);
      else
        store_piece(reinterpret_cast<E*>(slot + i * 512), gather_piece(own, count));
    }
  }
  __device__ __forceinline__ void write(int unit, int piece, const float (&numbers)[T::kSize], bool wide) const {
    write_numbers(to[piece % 2] + channel(unit, piece), numbers, channels[piece % 2] - channel(unit, piece), wide);
  }
};

// A unit's pieces, once they are in shared memory.
template <class T, class E>
struct UnitPieces {
  Piece<E> at[T::kPieces];

  __device__ __forceinline__ explicit UnitPieces(const char* slot) {
#pragma unroll
    for (int i = 0; i < T::kPieces; ++i) at[i] = load_piece(reinterpret_cast<const E*>(slot + i * 512));
  }
};

template <class T, class E>
__device__ __forceinline__ Left<typename T::Numbers> left_of_pieces(const UnitPieces<T, E>& pieces, int step) {
  using P = typename T::Numbers;
  Left<P> left;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Piece<E>& piece = pieces.at[step * 4 / T::kSize * 2 + i % 2];
    const int number = step * 4 % T::kSize + i / 2 * 2;
    if constexpr (std::is_same_v<E, BFloat16>) {
      left.part[0][i] = piece.words[number / 2];
    } else {
      uint32_t parts[P::count];
      split_pair<P>(piece.number(number), piece.number(number + 1), parts);
#pragma unroll
      for (int part = 0; part < P::count; ++part) left.part[part][i] = parts[part];
    }
  }
  return left;
}

// c[16, K] += x·r over one unit
template <class T, class E, int N>
__device__ __forceinline__ void contract(float (&c)[1][N][4], const UnitPieces<T, E>& pieces,
                                         const typename T::Unit& r) {
#pragma unroll
  for (int step = 0; step < kUnit / 16; ++step) {
    const auto left = left_of_pieces(pieces, step);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      const auto right = load_right<Depth::rows>(r, 8 * n, 16 * step);
      multiply(c[0][n], left, right, 0);
      multiply(c[0][n + 1], left, right, 1);
    }
  }
}

// x·r, once complete: out to memory, and scaled as the left operand of the second product.
template <class T, class E, int N>
__device__ __forceinline__ void turn(const Task<E>& task, int64_t problem, int64_t first_row, float (&c)[1][N][4],
                                     Left<typename T::Numbers> (&scaled)[N / 2]) {
  if (task.coefficients != nullptr)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = first_row + sum_row(i);
        const int base = 8 * n + sum_column(i);
        if (row < task.shape.rows && base < task.num_bases)
          task.coefficients[(problem * task.shape.rows + row) * task.num_bases + base] = c[0][n][i];
      }
  if (task.y == nullptr) return;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    float factor[2];
    for (int i = 0; i < 2; ++i) {
      const int base = 8 * n + sum_column(i);
      factor[i] = base < task.num_bases ? task.weight * task.scale[problem * task.num_bases + base] : 0.0f;
    }
    for (int i = 0; i < 4; ++i) c[0][n][i] *= factor[i % 2];
  }
#pragma unroll
  for (int n = 0; n < N; n += 2) scaled[n / 2] = left_of_sums<typename T::Numbers>(c[0][n], c[0][n + 1]);
}

// y = x + scaled·rᵀ for one unit
template <class T, class E, int K>
__device__ __forceinline__ void expand(const WarpRows<T, E>& rows, int unit,
                                       const Left<typename T::Numbers> (&scaled)[K], const UnitPieces<T, E>& pieces,
                                       const typename T::Unit& r, bool wide) {
  float sums[kUnit / 16][2][4] = {};
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int step = 0; step < kUnit / 16; ++step) {
      const auto right = load_right<Depth::columns>(r, 16 * step, 16 * k);
      multiply(sums[step][0], scaled[k], right, 0);
      multiply(sums[step][1], scaled[k], right, 1);
    }
#pragma unroll
  for (int i = 0; i < T::kPieces; ++i) {
    float numbers[T::kSize];
#pragma unroll
    for (int j = 0; j < T::kSize; ++j) {
      const int step = i / 2 * T::kSize / 4 + j / 4;
      numbers[j] = pieces.at[i].number(j) + sums[step][j / 2 % 2][j % 2 + i % 2 * 2];
    }
    rows.write(unit, i, numbers, wide);
  }
}

}  // namespace
}  // namespace emcl
