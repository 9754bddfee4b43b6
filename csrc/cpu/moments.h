// gram = xᵀx and colsum = xᵀ1: half of the symmetric product, and its backward.
#pragma once

#include "cpu/tile.h"

namespace {

// Packed rows of a product xᵀy: columns [panel * W, panel * W + W) of row i are at [panel][i].
template <class T>
class Strip {
 public:
  explicit Strip(int64_t width, int64_t most_rows = kStrip)
      : panels(divide_up(width, kPanel<T>)), most_rows_(most_rows), packed_(panels * most_rows * kPanel<T>) {}
  T* at(int64_t row, int64_t panel) const { return packed_.get() + (panel * most_rows_ + row) * kPanel<T>; }
  template <class E>
  void pack(int64_t row, const E* x, int64_t width) const {
    for (int64_t panel = 0; panel < panels; ++panel)
      pack_panel<E, T>(x, 1, width, width, 1, panel * kPanel<T>, at(row, panel));
  }
  const int64_t panels;

 private:
  int64_t most_rows_;
  Scratch<T> packed_;
};

// A sum over rows is shared out into parts of about kPartRows, each added up by one thread: threads that read the same
// packed rows would wait for each other's caches. The number of parts depends on that of the rows alone, and so do the
// bits of the sum.
inline int64_t parts_of(int64_t rows) {
  int64_t parts = 1;
  while (parts < kMostParts && rows >= 2 * parts * kPartRows) parts *= 2;
  return parts;
}

// Adds up xᵀy, known to be symmetric, and the column sums of x.
//
// A symmetric matrix is known by one half: of the grid of W×W blocks only the triangle on and above the diagonal is
// computed, block (left, right) with left <= right, which is half of the work. The blocks lie one after the other in
// memory, column by column, and each part of the rows has a triangle of its own, so that no two threads write to the
// same one. The other half is written as a mirror image at the end.
template <class T>
class GramSum {
 public:
  GramSum(int64_t parts, int64_t width)
      : parts_(parts),
        width_(width),
        panels_(divide_up(width, W)),
        pairs_(panels_ * (panels_ + 1) / 2),
        blocks_(parts * pairs_ * W * W),
        sums_(parts * panels_ * W) {}

  void start(int64_t part) {
    std::memset(blocks_of(part), 0, size_t(pairs_ * W * W) * sizeof(T));
    std::memset(&sums_[part * panels_ * W], 0, size_t(panels_ * W) * sizeof(T));
  }

  // Adds xᵀy for `rows` packed rows.
  void add(int64_t part, int64_t rows, const Strip<T>& x, const Strip<T>& y) {
    for (int64_t right = 0; right < panels_; ++right)
      for (int64_t left = 0; left <= right; ++left)
        add_block(left, right, rows, x.at(0, left), y.at(0, right), block_of(part, left, right));
  }

  // Adds rows of x to the column sums, each `count` times, or once where that is null. To be called for few rows at a
  // time, while they are in the cache: short sums first keep float32 sums of many rows exact.
  void add_columns(int64_t part, int64_t begin, int64_t end, const Strip<T>& x, const T* count) {
    for (int64_t panel = 0; panel < panels_; ++panel)
      for (int64_t j = 0; j < W; j += kLanes<T>) {
        Vec<T> sum = {};
        for (int64_t row = begin; row < end; ++row)
          sum += count == nullptr ? load(x.at(row, panel) + j) : load(x.at(row, panel) + j) * count[row];
        add_to(&sums_[(part * panels_ + panel) * W + j], sum);
      }
  }

  // Adds rows that are both factors.
  template <class E>
  void add_rows(int64_t part, const E* x, int64_t rows, const Strip<T>& strip) {
    for (int64_t begin = 0; begin < rows; begin += kStrip) {
      const int64_t depth = least(kStrip, rows - begin);
      for (int64_t block = 0; block < depth; block += kRowBlock) {
        const int64_t end = least(depth, block + kRowBlock);
        for (int64_t i = block; i < end; ++i) strip.pack(i, x + (begin + i) * width_, width_);
        add_columns(part, block, end, strip, nullptr);
      }
      add(part, depth, strip, strip);
    }
  }

  // The sums of all parts, in their order.
  void total(emcl::ParallelFor run, T* gram, T* colsum) {
    parallel(run, panels_, grain_of(parts_ * panels_ * W * W), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {  // from both ends in turn: a column of blocks is the longer the later
        const int64_t right = i % 2 == 0 ? i / 2 : panels_ - 1 - i / 2;
        for (int64_t left = 0; left <= right; ++left) {
          T* block = block_of(0, left, right);
          for (int64_t part = 1; part < parts_; ++part)
            for (int64_t j = 0; j < W * W; j += kLanes<T>) add_to(block + j, load(block_of(part, left, right) + j));
          write(block, left, right, gram);
        }
      }
    });
    for (int64_t part = 1; part < parts_; ++part)
      for (int64_t d = 0; d < panels_ * W; ++d) sums_[d] += sums_[part * panels_ * W + d];
    std::memcpy(colsum, sums_.get(), size_t(width_) * sizeof(T));
  }

 private:
  static constexpr int64_t W = kPanel<T>;
  static void add_to(T* to, Vec<T> value) { store(to, load(to) + value); }
  T* blocks_of(int64_t part) const { return blocks_.get() + part * pairs_ * W * W; }
  T* block_of(int64_t part, int64_t left, int64_t right) const {
    return blocks_of(part) + (right * (right + 1) / 2 + left) * W * W;
  }

  // Of a block on the diagonal, and of the last column of blocks, only the vectors that are needed.
  void add_block(int64_t left, int64_t right, int64_t rows, const T* a, const T* b, T* block) const {
    constexpr int64_t V = kLanes<T>;
    const int64_t m = least(W, width_ - left * W);
    const int64_t vectors = divide_up(least(W, width_ - right * W), V);
    if (left < right) return part_of_panel_product<T, true>(vectors, m, rows, a, 1, W, b, block, W);
    for (int64_t i = 0; i < m; i += V)
      part_of_panel_product<T, true>(vectors - i / V, least(V, m - i), rows, a + i, 1, W, b + i, block + i * W + i, W);
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

  int64_t parts_, width_, panels_, pairs_;
  Scratch<T> blocks_, sums_;  // [parts][pairs][W][W], [parts][panels][W]
};

// Where a part of `count` things begins.
inline int64_t part_begin(int64_t part, int64_t parts, int64_t count) { return part * count / parts; }

template <class E>
void moments(emcl::ParallelFor run, const E* x, int64_t rows, int64_t width, Compute<E>* gram, Compute<E>* colsum) {
  using T = Compute<E>;
  const int64_t parts = parts_of(rows);
  GramSum<T> sum(parts, width);

  parallel(run, parts, grain_of(rows / parts * width * width / 2), [&](int64_t first, int64_t last) {
    const Strip<T> strip(width);
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = part_begin(part, parts, rows), end = part_begin(part + 1, parts, rows);
      sum.start(part);
      sum.add_rows(part, x + begin * width, end - begin, strip);
    }
  });
  sum.total(run, gram, colsum);
}

// d_x = x·(d_gram + d_gramᵀ) + 1·d_colsumᵀ
template <class E>
void moments_backward(emcl::ParallelFor run, const E* x, const Compute<E>* d_gram, const Compute<E>* d_colsum,
                      int64_t rows, int64_t width, E* d_x) {
  using T = Compute<E>;
  constexpr int64_t W = kPanel<T>, kBlock = 12 * kPanelRows;
  const int64_t panels = divide_up(width, W);

  // A block of rows is multiplied by one panel of d_gram + d_gramᵀ after the other; d_colsum is what it starts from.
  Scratch<T> packed(panels * width * W);
  pack_twice_symmetric(run, d_gram, width, packed.get());
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
