// gram = xᵀx and colsum = xᵀ1: half of the symmetric product, and its backward.
#pragma once

#include "tile.h"

namespace {

// Adds up xᵀy, known to be symmetric, and the column sums of x, strip by strip of the rows. Strips and tiles do not
// depend on the number of threads, so neither do the bits of the result.
template <class T>
class GramSum {
 public:
  GramSum(emcl::ParallelFor run, int64_t strip, int64_t width)
      : run_(run), width_(width), panels_(divide_up(width, W)), pairs_(panels_ * (panels_ + 1) / 2), strip_(strip),
        packed_x_(panels_ * strip_ * W), blocks_(pairs_ * W * W), sums_(panels_ * W),
        partial_(divide_up(strip_, kRowBlock) * panels_ * W) {
    blocks_.clear(pairs_ * W * W);
    sums_.clear(panels_ * W);
  }

  // A strip whose columns [panel * W, panel * W + W) the caller has written to x_at and to packed_y, which is laid out
  // alike. A row of x counts `count` times in the column sums.
  T* x_at(int64_t row, int64_t panel) const { return packed_x_.get() + (panel * strip_ + row) * W; }
  void add_packed(int64_t rows, const T* packed_y, const T* count) {
    sum_columns(rows, count, [](int64_t, int64_t) {});
    multiply_strip(rows, packed_y, nullptr);
  }

  // The last rows, each of which serves as both factors; then the sums.
  template <class E>
  void finish(const E* x, int64_t rows, T* gram, T* colsum) {
    for (int64_t begin = 0; begin < rows; begin += strip_) {
      const int64_t depth = least(strip_, rows - begin);
      sum_columns(depth, nullptr, [&](int64_t row, int64_t panel) {
        pack_panel<E, T>(x + (begin + row) * width_, 1, width_, width_, 1, panel * W, x_at(row, panel));
      });
      multiply_strip(depth, packed_x_.get(), begin + depth == rows ? gram : nullptr);
    }
    std::memcpy(colsum, sums_.get(), size_t(width_) * sizeof(T));
  }

 private:
  static constexpr int64_t W = kPanel<T>;

  // prepare(row, panel) writes a row of packed x before it is added. Short sums first: they keep float32 sums of many
  // rows exact.
  template <class F>
  void sum_columns(int64_t depth, const T* count, const F& prepare) {
    const int64_t blocks = divide_up(depth, kRowBlock), size = panels_ * W;
    parallel(run_, blocks, grain_of(kRowBlock * size / 4), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        T* sums = &partial_[block * size];
        for (int64_t d = 0; d < size; ++d) sums[d] = 0;
        for (int64_t row = block * kRowBlock; row < least(depth, (block + 1) * kRowBlock); ++row)
          for (int64_t panel = 0; panel < panels_; ++panel) {
            prepare(row, panel);
            for (int64_t j = 0; j < W; j += kLanes<T>) {
              const Vec<T> x = load(x_at(row, panel) + j);
              T* sum = sums + panel * W + j;
              store(sum, load(sum) + (count == nullptr ? x : x * count[row]));
            }
          }
      }
    });
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t d = 0; d < size; ++d) sums_[d] += partial_[block * size + d];
  }

  // f(pair, left, right) for blocks of the upper half; pair = right * (right + 1) / 2 + left, left <= right. Taken from
  // both ends in turn, so that the smaller blocks of the last column are shared out evenly.
  template <class F>
  void each_pair(int64_t first, int64_t last, const F& f) const {
    for (int64_t i = first; i < last; ++i) {
      const int64_t pair = i % 2 == 0 ? i / 2 : pairs_ - 1 - i / 2;
      int64_t right = 0;
      while ((right + 1) * (right + 2) / 2 <= pair) ++right;
      f(pair, pair - right * (right + 1) / 2, right);
    }
  }

  // Of a block on the diagonal, and of the last column of blocks, only the vectors that are needed. Blocks are complete,
  // and written out, where `gram` is not null.
  void multiply_strip(int64_t depth, const T* packed_y, T* gram) {
    constexpr int64_t V = kLanes<T>;
    parallel(run_, pairs_, grain_of(depth * W * W), [&](int64_t first, int64_t last) {
      each_pair(first, last, [&](int64_t pair, int64_t left, int64_t right) {
        const T *a = packed_x_.get() + left * strip_ * W, *b = packed_y + right * strip_ * W;
        T* block = &blocks_[pair * W * W];
        const int64_t m = least(W, width_ - left * W), vectors = divide_up(least(W, width_ - right * W), V);
        if (left < right) {
          part_of_panel_product<T, true>(vectors, m, depth, a, 1, W, b, block, W);
        } else {
          for (int64_t i = 0; i < m; i += V)
            part_of_panel_product<T, true>(vectors - i / V, least(V, m - i), depth, a + i, 1, W, b + i, block + i * W + i, W);
        }
        if (gram != nullptr) write(block, left, right, gram);
      });
    });
  }

  // A block and, below the diagonal, its mirror image.
  void write(const T* block, int64_t left, int64_t right, T* gram) const {
    const int64_t m = least(W, width_ - left * W), n = least(W, width_ - right * W);
    T* upper = gram + left * W * width_ + right * W;
    T* lower = gram + right * W * width_ + left * W;
    for (int64_t c = 0; c < n; ++c)
      for (int64_t r = 0; r < (left == right ? c : m); ++r) lower[c * width_ + r] = block[r * W + c];
    for (int64_t r = 0; r < m; ++r) {
      const int64_t c = left == right ? r : 0;
      std::memcpy(upper + r * width_ + c, block + r * W + c, size_t(n - c) * sizeof(T));
    }
  }

  emcl::ParallelFor run_;
  int64_t width_, panels_, pairs_, strip_;
  Scratch<T> packed_x_, blocks_, sums_, partial_;
};

// Equal strips of about kStrip rows.
inline int64_t strip_of(int64_t rows) { return divide_up(rows, most<int64_t>(1, (rows + kStrip / 2) / kStrip)); }

template <class E>
void moments(emcl::ParallelFor run, const void* x, int64_t rows, int64_t width, void* gram, void* colsum) {
  using T = Compute<E>;
  GramSum<T>(run, strip_of(rows), width)
      .finish(static_cast<const E*>(x), rows, static_cast<T*>(gram), static_cast<T*>(colsum));
}

// d_x = x·(d_gram + d_gramᵀ) + 1·d_colsumᵀ
template <class E>
void moments_backward(emcl::ParallelFor run, const void* x_, const void* d_gram_, const void* d_colsum_, int64_t rows,
                      int64_t width, void* d_x_) {
  using T = Compute<E>;
  constexpr int64_t W = kPanel<T>, kBlock = 12 * kPanelRows;
  const E* x = static_cast<const E*>(x_);
  const T* d_colsum = static_cast<const T*>(d_colsum_);
  E* d_x = static_cast<E*>(d_x_);
  const int64_t panels = divide_up(width, W);
  Scratch<T> packed(panels * width * W);
  pack_twice_symmetric(run, static_cast<const T*>(d_gram_), width, packed.get());
  parallel(run, divide_up(rows, kBlock), grain_of(kBlock * width * width), [&](int64_t first, int64_t last) {
    Scratch<T> wide(kBlock * width), out(kBlock * W);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kBlock, m = least(kBlock, rows - begin);
      const T* a = widened<E>(x + begin * width, m * width, wide.get());
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t valid = least(W, width - panel * W);
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < W; ++j) out[i * W + j] = j < valid ? d_colsum[panel * W + j] : T(0);
        panel_product<T, true>(m, width, a, width, 1, &packed[panel * width * W], out.get(), W);
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < valid; ++j) narrow(out[i * W + j], &d_x[(begin + i) * width + panel * W + j]);
      }
    }
  });
}

}  // namespace
