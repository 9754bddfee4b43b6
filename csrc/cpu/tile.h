// The one inner loop of every product, and the packings that feed it.
#pragma once

#include "../tiles.h"
#include "kernels.h"
#include "vec.h"

namespace {

// A tile on panels is kPanelRows rows by kPanelVectors vectors of accumulators; kPanelRows divides kPanel.
constexpr int kPanelVectors = kVectorBytes == 16 ? 4 : 3;
constexpr int kPanelRows = kRegisters == 32 ? 8 : 4;
template <class T>
constexpr int kPanel = kPanelVectors * kLanes<T>;  // columns of a packed panel
using emcl::kChannelBlock, emcl::kDepth, emcl::kRowBlock, emcl::kStrip;

template <class F>
void parallel(emcl::ParallelFor run, int64_t count, int64_t grain, const F& body) {
  run(count, grain, [](void* f, int64_t begin, int64_t end) { (*static_cast<const F*>(f))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}
// Items that are worth a thread of their own together: about 60 microseconds of arithmetic.
inline int64_t grain_of(int64_t multiplies_per_item) {
  return most<int64_t>(1, (int64_t(1) << 20) / most<int64_t>(1, multiplies_per_item));
}

// acc[MR][NV] += a[MR, depth] · b[depth, NV vectors]; element (i, p) of a is a[i * row + p * step].
template <class T, int MR, int NV>
inline __attribute__((always_inline)) void multiply(int64_t depth, const T* a, int64_t row, int64_t step, const T* b,
                                                    int64_t b_step, Vec<T> (&acc)[MR][NV]) {
  for (int64_t p = 0; p < depth; ++p) {
    Vec<T> right[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) right[j] = load(b + p * b_step + j * kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const Vec<T> left = splat(a[i * row + p * step]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] += left * right[j];
    }
  }
}

// Calls f(integral constant) with the number of rows of this tile, so that tiles at the edge are unrolled too.
template <int N>
struct Count {
  static constexpr int value = N;
};
template <int MAX, class F>
inline void with_rows(int64_t rows, const F& f) {
  if constexpr (MAX > 1) {
    if (rows < MAX) return with_rows<MAX - 1>(rows, f);
  }
  f(Count<MAX>{});
}

// Columns of thin matrices [*, K] are padded to whole vectors with zeros.
template <class T>
inline int64_t thin_width(int64_t bases) { return round_up(bases, kLanes<T>); }

template <int NV>
constexpr int kThinRows = kRegisters == 32 ? (NV == 1 ? 14 : 24 / NV) : (NV == 1 ? 8 : 12 / NV);

// out[m, K] = scale · a[m, depth] · b[depth, K] (+ out), for thin b and out of row stride `thin`.
template <class T, bool ADD, int NV>
inline void thin_columns(int64_t m, int64_t depth, const T* a, int64_t row, int64_t step, const T* b, int64_t thin,
                         T* out) {
  for (int64_t i = 0; i < m; i += kThinRows<NV>) {
    with_rows<kThinRows<NV>>(least<int64_t>(kThinRows<NV>, m - i), [&](auto rows) {
      constexpr int MR = decltype(rows)::value;
      Vec<T> acc[MR][NV];
      for (int r = 0; r < MR; ++r)
        for (int j = 0; j < NV; ++j)
          acc[r][j] = ADD ? load(out + (i + r) * thin + j * kLanes<T>) : Vec<T>{};
      multiply<T, MR, NV>(depth, a + i * row, row, step, b, thin, acc);
      for (int r = 0; r < MR; ++r)
        for (int j = 0; j < NV; ++j) store(out + (i + r) * thin + j * kLanes<T>, acc[r][j]);
    });
  }
}
template <class T, bool ADD = false>
inline void thin_product(int64_t m, int64_t depth, const T* a, int64_t row, int64_t step, const T* b, int64_t thin,
                         T* out) {
  int64_t c = 0;
  for (; c + 4 * kLanes<T> <= thin; c += 4 * kLanes<T>) thin_columns<T, ADD, 4>(m, depth, a, row, step, b + c, thin, out + c);
  switch ((thin - c) / kLanes<T>) {
    case 3: return thin_columns<T, ADD, 3>(m, depth, a, row, step, b + c, thin, out + c);
    case 2: return thin_columns<T, ADD, 2>(m, depth, a, row, step, b + c, thin, out + c);
    case 1: return thin_columns<T, ADD, 1>(m, depth, a, row, step, b + c, thin, out + c);
  }
}

// [rows, K] to padded [rows, thin], times a factor per column (or none).
template <class T>
inline void pad_thin(const T* src, int64_t rows, int64_t bases, int64_t thin, const T* factor, T* dst) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < bases; ++k) dst[i * thin + k] = factor ? src[i * bases + k] * factor[k] : src[i * bases + k];
    for (int64_t k = bases; k < thin; ++k) dst[i * thin + k] = 0;
  }
}
template <class T>
inline void unpad_thin(const T* src, int64_t rows, int64_t bases, int64_t thin, const T* factor, T* dst) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < bases; ++k) dst[i * bases + k] = factor ? src[i * thin + k] * factor[k] : src[i * thin + k];
}

// One panel: columns [column, column + kPanel) of src [depth, cols], element (p, j) at src[p * row + j * step].
template <class E, class T>
inline void pack_panel(const E* src, int64_t depth, int64_t cols, int64_t row, int64_t step, int64_t column, T* dst) {
  const int64_t valid = least<int64_t>(kPanel<T>, cols - column);
  for (int64_t p = 0; p < depth; ++p) {
    const E* from = src + p * row + column * step;
    T* to = dst + p * kPanel<T>;
    if (step == 1 && valid == kPanel<T>) {
      for (int64_t j = 0; j < kPanel<T>; ++j) to[j] = widen(from[j]);
    } else {
      for (int64_t j = 0; j < valid; ++j) to[j] = widen(from[j * step]);
      for (int64_t j = valid; j < kPanel<T>; ++j) to[j] = 0;
    }
  }
}

// Rows in the type that they are multiplied in: the rows themselves, or a copy in `buffer`.
template <class E>
inline const Compute<E>* widened(const E* src, int64_t count, Compute<E>* buffer) {
  if constexpr (sizeof(E) == sizeof(Compute<E>)) {
    return reinterpret_cast<const Compute<E>*>(src);
  } else {
    for (int64_t i = 0; i < count; ++i) buffer[i] = widen(src[i]);
    return buffer;
  }
}

}  // namespace
