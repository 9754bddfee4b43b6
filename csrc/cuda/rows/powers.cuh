// Powers of two that bring float32 channels into the range of float16, found while the rows pass by.
//
// A pair of float16 keeps 22 bits of a number in as many products as a pair of bfloat16, which keeps 16, takes. But
// float16 ends at 2^16, and below 2^-3 a pair loses bits. So a block multiplies each channel by a power of two of its
// own, which follows from the first rows and leaves room for numbers 2^12 times as large. One beyond that is infinite
// once it is converted, and so is seen: the power is lowered, what was summed up is scaled likewise, and the rows at
// hand are converted again. So the rows are read once, whatever their scale, and the host need not know it.
//
// What is lost of a number is at most 2^-22 of it, or 2^-28 of the largest in its channel so far. A channel that is
// multiplied by a power of two gives the same bits, multiplied likewise.
#pragma once

#include "cuda/tile/tile.cuh"

namespace emcl {
namespace {

template <int THREADS>
constexpr int kPowerBytes = (2 * THREADS + 4) * 4;

// For the two sides of a product xᵀ·y over rows that come by ROWS, a Fetch with as many threads as both sides have
// channels. On the diagonal both sides are the same, and only the first is ever fetched.
template <class ROWS, int CHANNELS, int THREADS>
class Powers {
  using Target = typename ROWS::Target;
  static_assert(2 * CHANNELS == THREADS && ROWS::kPiece == 4);
  static_assert(ROWS::kRowStep * CHANNELS * 4 <= Target::kBytes);

 public:
  // memory: kPowerBytes of shared memory, aligned to 16
  __device__ __forceinline__ Powers(char* memory, bool diagonal)
      : factors_(reinterpret_cast<float*>(memory)),
        changes_(factors_ + THREADS),
        missed_(reinterpret_cast<int*>(changes_ + THREADS)),
        diagonal_(diagonal) {
    // The largest there is; `choose` has barriers before anything is read by another thread.
    factors_[threadIdx.x] = as_float(uint32_t(kBias + kBias) << 23);
    if (threadIdx.x == 0) *missed_ = -1;
  }

  // Lowers the powers of channels whose numbers do not fit. pieces(side, f) calls f(row, piece) for this thread's
  // pieces of a step; tile(side) is used as scratch memory. Has barriers, the last one at its end.
  template <class Tiles, class Pieces>
  __device__ __forceinline__ void choose(const Tiles& tile, const Pieces& pieces) const {
    const auto lines = [&](int side) { return reinterpret_cast<float*>(tile(side).memory); };  // [kRowStep, CHANNELS]
    for (int side = 0; side < (diagonal_ ? 1 : 2); ++side) {
      float largest[4] = {};
      pieces(side, [&](int, const Piece<float>& piece) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float size = fabsf(piece.number(j));
          if (size > largest[j] && size < INFINITY) largest[j] = size;
        }
      });
      float* to = lines(side) + ROWS::own_row() * CHANNELS + ROWS::own_column();
      *reinterpret_cast<float4*>(to) = make_float4(largest[0], largest[1], largest[2], largest[3]);
    }
    __syncthreads();

    // One thread for each channel of each side.
    const float* line = lines(diagonal_ ? 0 : int(threadIdx.x) / CHANNELS) + threadIdx.x % CHANNELS;
    float largest = 0;
    for (int i = 0; i < ROWS::kRowStep; ++i) largest = fmaxf(largest, line[i * CHANNELS]);
    const float before = factors_[threadIdx.x];
    const int exponent = int(as_bits(largest) >> 23), power = int(as_bits(before) >> 23);
    float after = before;
    if (exponent + power >= 2 * kBias + kMost) {
      const int fitting = 2 * kBias + kUsual - exponent;
      after = as_float(uint32_t(fitting < 2 * kBias ? fitting : 2 * kBias) << 23);
    }
    factors_[threadIdx.x] = after;
    changes_[threadIdx.x] = after / before;
    __syncthreads();
  }

  // This thread's pieces of a step into the step's tiles.
  template <class Tiles, class Pieces>
  __device__ __forceinline__ void convert(int step, const Tiles& tile, const Pieces& pieces) const {
    using P = typename Target::Numbers;
    uint32_t infinite = 0;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      if (side == 1 && diagonal_) break;
      const float4 four = *reinterpret_cast<const float4*>(factors_ + side * CHANNELS + ROWS::own_column());
      pieces(side, [&](int row, const Piece<float>& piece) {
        uint32_t parts[2][P::count];
        split_pair<P>(piece.number(0) * four.x, piece.number(1) * four.y, parts[0]);
        split_pair<P>(piece.number(2) * four.z, piece.number(3) * four.w, parts[1]);
        // An exponent of all ones carries into the sign's place.
#pragma unroll
        for (int j = 0; j < 2; ++j) infinite |= (parts[j][0] & 0x7fff7fffu) + 0x04000400u;
        ROWS::store(tile(side), row, parts);
      });
    }
    if ((infinite & 0x80008000u) != 0) *missed_ = step;
  }

  // After a barrier: whether a number of this step did not fit. All threads see the same: one that is ahead writes a
  // later step, which is not this one either, and cannot be ahead of the barriers of `choose`.
  __device__ __forceinline__ bool missed(int step) const { return *missed_ == step; }

  // Sums of products so far, as they would be with the powers that `choose` chose last.
  template <int M, int N>
  __device__ __forceinline__ void rescale(float (&total)[M][N][4], int row, int column) const {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          total[m][n][i] *= changes_[row + 16 * m + sum_row(i)] * changes_[CHANNELS + column + 8 * n + sum_column(i)];
  }

  // The same without any powers.
  template <int M, int N>
  __device__ __forceinline__ void unscale(float (&total)[M][N][4], int row, int column) const {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int power =
              exponent_of(row + 16 * m + sum_row(i)) + exponent_of(CHANNELS + column + 8 * n + sum_column(i));
          // In two halves, because both together may be out of float32's range.
          const int half = power / 2;
          total[m][n][i] = total[m][n][i] * as_float(uint32_t(kBias - half) << 23) *
                           as_float(uint32_t(kBias - (power - half)) << 23);
        }
  }

 private:
  static constexpr int kBias = 127;
  static constexpr int kUsual = 3;  // numbers are below 2^(kUsual + 1) after a choice,
  static constexpr int kMost = 15;  // and below 2^kMost always

  __device__ __forceinline__ int exponent_of(int channel) const {
    return int(as_bits(factors_[channel]) >> 23) - kBias;
  }

  float *factors_, *changes_;  // [2, CHANNELS]
  int* missed_;                // the last step with a number that did not fit
  const bool diagonal_;
};

}  // namespace
}  // namespace emcl
