// gram = xᵀx and colsum = xᵀ1: half of the symmetric product, and its backward.
#pragma once

#include "tile.h"

namespace {

// Rows are taken in strips; each strip is packed once and serves as both factors. Strips and tiles do not depend on
// the number of threads, so neither do the bits of the result.
template <class E>
void moments(emcl::ParallelFor run, const void* x_, int64_t rows, int64_t width, void* gram_, void* colsum_) {
  using T = Compute<E>;
  constexpr int64_t W = kPanel<T>;
  const E* x = static_cast<const E*>(x_);
  T* gram = static_cast<T*>(gram_);
  T* colsum = static_cast<T*>(colsum_);
  const int64_t panels = divide_up(width, W), pairs = panels * (panels + 1) / 2;
  const int64_t strip = least(rows, kStrip);
  Scratch<T> packed(panels * strip * W), blocks(pairs * W * W), sums(panels * W);
  std::memset(blocks.get(), 0, size_t(pairs * W * W) * sizeof(T));
  std::memset(sums.get(), 0, size_t(panels * W) * sizeof(T));

  for (int64_t begin = 0; begin < rows; begin += strip) {
    const int64_t depth = least(strip, rows - begin);
    parallel(run, panels, grain_of(depth * W / 4), [&](int64_t first, int64_t last) {
      for (int64_t panel = first; panel < last; ++panel) {
        T* to = packed.get() + panel * strip * W;
        pack_panel<E, T>(x + begin * width, depth, width, width, 1, panel * W, to);
        for (int64_t p = 0; p < depth; p += kDepth) {  // short sums first: they keep float32 sums of many rows exact
          Vec<T> partial[kPanelVectors] = {};
          for (int64_t q = p; q < least(depth, p + kDepth); ++q)
            for (int j = 0; j < kPanelVectors; ++j) partial[j] += load(to + q * W + j * kLanes<T>);
          for (int j = 0; j < kPanelVectors; ++j) {
            T* sum = &sums[panel * W + j * kLanes<T>];
            store(sum, load(sum) + partial[j]);
          }
        }
      }
    });
    parallel(run, pairs, grain_of(depth * W * W), [&](int64_t first, int64_t last) {
      int64_t right = 0;  // pair = right * (right + 1) / 2 + left, left <= right
      while ((right + 1) * (right + 2) / 2 <= first) ++right;
      for (int64_t pair = first; pair < last; ++pair) {
        if (pair == (right + 1) * (right + 2) / 2) ++right;
        const int64_t left = pair - right * (right + 1) / 2;
        const T* a = packed.get() + left * strip * W;
        const T* b = packed.get() + right * strip * W;
        for (int64_t p = 0; p < depth; p += kDepth) {
          for (int64_t i = 0; i < W; i += kPanelRows) {
            T* out = &blocks[pair * W * W + i * W];
            Vec<T> acc[kPanelRows][kPanelVectors] = {};
            multiply<T, kPanelRows, kPanelVectors>(least(kDepth, depth - p), a + p * W + i, 1, W, b + p * W, W, acc);
            for (int r = 0; r < kPanelRows; ++r)
              for (int j = 0; j < kPanelVectors; ++j) {
                T* to = out + r * W + j * kLanes<T>;
                store(to, load(to) + acc[r][j]);
              }
          }
        }
      }
    });
  }
  for (int64_t d = 0; d < width; ++d) colsum[d] = sums[d];
  parallel(run, panels, grain_of(W * width / 2), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      for (int64_t j = 0; j < panels; ++j) {
        const bool above = i <= j;
        const int64_t pair = above ? j * (j + 1) / 2 + i : i * (i + 1) / 2 + j;
        const T* block = &blocks[pair * W * W];
        const int64_t m = least(W, width - i * W), n = least(W, width - j * W);
        for (int64_t r = 0; r < m; ++r)
          for (int64_t c = 0; c < n; ++c)
            // the diagonal block is whole but summed in two orders: its upper half serves both
            gram[(i * W + r) * width + j * W + c] =
                above && (i != j || r <= c) ? block[r * W + c] : block[c * W + r];
      }
    }
  });
}

// d_x = x·(d_gram + d_gramᵀ) + 1·d_colsumᵀ
template <class E>
void moments_backward(emcl::ParallelFor run, const void* x_, const void* d_gram_, const void* d_colsum_, int64_t rows,
                      int64_t width, void* d_x_) {
  using T = Compute<E>;
  constexpr int64_t W = kPanel<T>, kBlock = 12 * kPanelRows;
  const E* x = static_cast<const E*>(x_);
  const T* d_gram = static_cast<const T*>(d_gram_);
  const T* d_colsum = static_cast<const T*>(d_colsum_);
  E* d_x = static_cast<E*>(d_x_);
  const int64_t panels = divide_up(width, W);
  Scratch<T> packed(panels * width * W);  // d_gram + d_gramᵀ
  parallel(run, panels, grain_of(width * W), [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel)
      for (int64_t p = 0; p < width; ++p)
        for (int64_t j = 0; j < W; ++j) {
          const int64_t c = panel * W + j;
          packed[(panel * width + p) * W + j] = c < width ? d_gram[p * width + c] + d_gram[c * width + p] : T(0);
        }
  });
  parallel(run, divide_up(rows, kBlock), grain_of(kBlock * width * width), [&](int64_t first, int64_t last) {
    Scratch<T> wide(kBlock * width), out(kBlock * W);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kBlock, m = least(kBlock, rows - begin);
      const T* a = widened<E>(x + begin * width, m * width, wide.get());
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t valid = least(W, width - panel * W);
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < W; ++j) out[i * W + j] = j < valid ? d_colsum[panel * W + j] : T(0);
        for (int64_t p = 0; p < width; p += kDepth)
          for (int64_t i = 0; i < m; i += kPanelRows)
            with_rows<kPanelRows>(least<int64_t>(kPanelRows, m - i), [&](auto count) {
              constexpr int MR = decltype(count)::value;
              Vec<T> acc[MR][kPanelVectors] = {};
              multiply<T, MR, kPanelVectors>(least(kDepth, width - p), a + i * width + p, width, 1, &packed[(panel * width + p) * W], W, acc);
              for (int r = 0; r < MR; ++r)
                for (int j = 0; j < kPanelVectors; ++j) {
                  T* to = &out[(i + r) * W + j * kLanes<T>];
                  store(to, load(to) + acc[r][j]);
                }
            });
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < valid; ++j) narrow(out[i * W + j], &d_x[(begin + i) * width + panel * W + j]);
      }
    }
  });
}

}  // namespace
