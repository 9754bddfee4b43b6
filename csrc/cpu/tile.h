// The one inner loop of every product, and the packings that feed it.
#pragma once

#include "cpu/call.h"
#include "cpu/vec.h"
#include "problem.h"
#include "tiles.h"

namespace {

// A tile on panels is kPanelRows rows by kPanelVectors vectors of accumulators; kPanelRows divides kPanel.
constexpr int kPanelVectors = kVectorBytes == 16 ? 4 : 3;
constexpr int kPanelRows = kRegisters == 32 ? 8 : 4;
template <class T>
constexpr int kPanel = kPanelVectors * kLanes<T>;  // columns of a packed panel
using emcl::kChannelBlock, emcl::kDepth, emcl::kMostParts, emcl::kPartRows, emcl::kRowBlock, emcl::kStrip;

template <class F>
void parallel(emcl::ParallelFor run, int64_t count, int64_t grain, const F& body) {
  run(
      count, grain, [](void* f, int64_t begin, int64_t end) { (*static_cast<const F*>(f))(begin, end); },
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
inline int64_t thin_width(int64_t num_bases) {
  return round_up(num_bases, kLanes<T>);
}

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
        for (int j = 0; j < NV; ++j) acc[r][j] = ADD ? load(out + (i + r) * thin + j * kLanes<T>) : Vec<T>{};
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
  for (; c + 4 * kLanes<T> <= thin; c += 4 * kLanes<T>)
    thin_columns<T, ADD, 4>(m, depth, a, row, step, b + c, thin, out + c);
  switch ((thin - c) / kLanes<T>) {
    case 3:
      return thin_columns<T, ADD, 3>(m, depth, a, row, step, b + c, thin, out + c);
    case 2:
      return thin_columns<T, ADD, 2>(m, depth, a, row, step, b + c, thin, out + c);
    case 1:
      return thin_columns<T, ADD, 1>(m, depth, a, row, step, b + c, thin, out + c);
  }
}

// [rows, K] to padded [rows, thin], times a factor per column (or none).
template <class T>
inline void pad_thin(const T* src, int64_t rows, int64_t num_bases, int64_t thin, const T* factor, T* dst) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < num_bases; ++k)
      dst[i * thin + k] = factor ? src[i * num_bases + k] * factor[k] : src[i * num_bases + k];
    for (int64_t k = num_bases; k < thin; ++k) dst[i * thin + k] = 0;
  }
}
template <class T>
inline void unpad_thin(const T* src, int64_t rows, int64_t num_bases, int64_t thin, const T* factor, T* dst) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < num_bases; ++k)
      dst[i * num_bases + k] = factor ? src[i * thin + k] * factor[k] : src[i * thin + k];
}

// Per-block sums [blocks, size] to their total, in the order of the blocks.
template <class T>
inline void add_up(const T* partial, int64_t blocks, int64_t size, T* total) {
  for (int64_t k = 0; k < size; ++k) total[k] = 0;
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t k = 0; k < size; ++k) total[k] += partial[b * size + k];
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

// All panels of the columns of src [depth, cols], one after the other.
template <class E, class T>
inline void pack_panels(emcl::ParallelFor run, const E* src, int64_t depth, int64_t cols, int64_t row, int64_t step,
                        T* dst) {
  parallel(run, divide_up(cols, kPanel<T>), grain_of(depth * kPanel<T>), [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel)
      pack_panel<E, T>(src, depth, cols, row, step, panel * kPanel<T>, dst + panel * depth * kPanel<T>);
  });
}

// Panels of m + mᵀ, [D, D].
template <class T>
inline void pack_twice_symmetric(emcl::ParallelFor run, const T* m, int64_t width, T* dst) {
  constexpr int64_t W = kPanel<T>;
  parallel(run, divide_up(width, W), grain_of(width * W), [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel)
      for (int64_t p = 0; p < width; ++p)
        for (int64_t j = 0; j < W; ++j) {
          const int64_t c = panel * W + j;
          dst[(panel * width + p) * W + j] = c < width ? m[p * width + c] + m[c * width + p] : T(0);
        }
  });
}

// out[m, NV vectors] (+)= a[m, depth] · b[depth, NV vectors]; element (i, p) of a is a[i * row + p * step], and rows of
// b lie b_row apart: in a packed panel, or in a matrix of longer rows.
template <class T, bool ADD = false, int NV = kPanelVectors>
inline void panel_product(int64_t m, int64_t depth, const T* a, int64_t row, int64_t step, const T* b, T* out,
                          int64_t out_row, int64_t b_row = kPanel<T>) {
  for (int64_t p = 0; p < depth; p += kDepth)
    for (int64_t i = 0; i < m; i += kPanelRows)
      with_rows<kPanelRows>(least<int64_t>(kPanelRows, m - i), [&](auto count) {
        constexpr int MR = decltype(count)::value;
        Vec<T> acc[MR][NV] = {};
        multiply<T, MR, NV>(least(kDepth, depth - p), a + i * row + p * step, row, step, b + p * b_row, b_row, acc);
        for (int r = 0; r < MR; ++r)
          for (int j = 0; j < NV; ++j) {
            T* to = out + (i + r) * out_row + j * kLanes<T>;
            store(to, ADD || p > 0 ? load(to) + acc[r][j] : acc[r][j]);
          }
      });
}
// The same for a number of vectors that is known at run time.
template <class T, bool ADD>
inline void part_of_panel_product(int64_t vectors, int64_t m, int64_t depth, const T* a, int64_t row, int64_t step,
                                  const T* panel, T* out, int64_t out_row) {
  switch (vectors) {
    case 1:
      return panel_product<T, ADD, 1>(m, depth, a, row, step, panel, out, out_row);
    case 2:
      return panel_product<T, ADD, 2>(m, depth, a, row, step, panel, out, out_row);
    case 3:
      return panel_product<T, ADD, 3>(m, depth, a, row, step, panel, out, out_row);
    case 4:
      return panel_product<T, ADD, 4>(m, depth, a, row, step, panel, out, out_row);
  }
}

// out[i, j] (+)= a_i · b_j for rows of `depth` numbers, a multiple of the lanes.
template <class T, int M, int N>
inline void row_products_tile(int64_t depth, const T* a, int64_t a_row, const T* b, int64_t b_row, bool add, T* out,
                              int64_t out_row) {
  Vec<T> acc[M][N] = {};
  for (int64_t p = 0; p < depth; p += kLanes<T>)
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[i][j] += load(a + i * a_row + p) * load(b + j * b_row + p);
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) {
      T* to = out + i * out_row + j;
      *to = (add ? *to : T(0)) + sum_of_lanes<T>(acc[i][j]);
    }
}
template <class T>
inline void row_products(int64_t m, int64_t n, int64_t depth, const T* a, int64_t a_row, const T* b, int64_t b_row,
                         bool add, T* out, int64_t out_row) {
  for (int64_t i = 0; i < m; i += 4)
    for (int64_t j = 0; j < n; j += 4) {
      const T *ai = a + i * a_row, *bj = b + j * b_row;
      T* to = out + i * out_row + j;
      if (m - i >= 4 && n - j >= 4) {
        row_products_tile<T, 4, 4>(depth, ai, a_row, bj, b_row, add, to, out_row);
      } else {
        for (int64_t r = 0; r < least<int64_t>(4, m - i); ++r)
          for (int64_t c = 0; c < least<int64_t>(4, n - j); ++c)
            row_products_tile<T, 1, 1>(depth, ai + r * a_row, a_row, bj + c * b_row, b_row, add, to + r * out_row + c,
                                       out_row);
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
