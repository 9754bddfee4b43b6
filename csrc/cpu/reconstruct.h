// The low-rank map of rows, fused with the residual, in one pass over them; and its backward.
#pragma once

#include "cpu/tile.h"

namespace {

// y[m, D] = x[m, D] + weight · coefficients[m, K]·rᵀ, where rᵀ is packed in panels of D
template <class E, class T>
void add_low_rank(const E* x, const T* coefficients, int64_t thin, const T* packed, int64_t m, int64_t width,
                  int64_t num_bases, T weight, E* y) {
  constexpr int64_t W = kPanel<T>;
  for (int64_t i = 0; i < m; i += kPanelRows)
    with_rows<kPanelRows>(least<int64_t>(kPanelRows, m - i), [&](auto count) {
      constexpr int MR = decltype(count)::value;
      for (int64_t column = 0; column < width; column += W) {
        const int64_t valid = least(W, width - column);
        Vec<T> acc[MR][kPanelVectors] = {};
        multiply<T, MR, kPanelVectors>(num_bases, coefficients + i * thin, thin, 1, packed + column * num_bases, W,
                                       acc);
        for (int r = 0; r < MR; ++r) {
          const E* from = x + (i + r) * width + column;
          E* to = y + (i + r) * width + column;
          if constexpr (sizeof(E) == sizeof(T)) {
            if (valid == W) {
              for (int j = 0; j < kPanelVectors; ++j)
                store<T>(to + j * kLanes<T>, load<T>(from + j * kLanes<T>) + weight * acc[r][j]);
              continue;
            }
          }
          T line[W];
          for (int j = 0; j < kPanelVectors; ++j) store(line + j * kLanes<T>, acc[r][j]);
          for (int64_t j = 0; j < valid; ++j) narrow(T(widen(from[j]) + weight * line[j]), to + j);
        }
      }
    });
}

// (GR) y = x + weight·(x·p·factor)·pᵀ, for p [D, bases] padded to [D, thin].
template <class E>
class Projection {
 public:
  using T = Compute<E>;
  // keep: x·p is kept for `measure`, `coefficients` and `write`
  Projection(emcl::ParallelFor run, const E* x, int64_t rows, int64_t width, int64_t num_bases, bool keep)
      : run_(run),
        x_(x),
        rows_(rows),
        width_(width),
        num_bases_(num_bases),
        thin_(thin_width<T>(num_bases)),
        blocks_(divide_up(rows, kRowBlock)),
        coefficients_(keep ? rows * thin_ : 0),
        partial_(blocks_ * thin_),
        total_(thin_) {}

  // x·p, [rows, thin]
  T* coefficients() const { return coefficients_.get(); }
  bool measured() const { return measured_; }

  // Keeps x·p and returns its squared lengths.
  const T* measure(const T* p) {
    each_block([&](int64_t block, int64_t begin, int64_t m, T* wide, T*) {
      T *c = &coefficients_[begin * thin_], *sums = &partial_[block * thin_];
      thin_product<T>(m, width_, widened<E>(x_ + begin * width_, m * width_, wide), width_, 1, p, thin_, c);
      for (int64_t k = 0; k < thin_; ++k) sums[k] = 0;
      for (int64_t i = 0; i < m * thin_; i += thin_)
        for (int64_t k = 0; k < thin_; k += kLanes<T>)
          store(sums + k, load(sums + k) + load(c + i + k) * load(c + i + k));
    });
    add_up(partial_.get(), blocks_, thin_, total_.get());
    measured_ = true;
    return total_.get();
  }

  // After `measure`, x·p is that of the p that was measured, and `p` the factor on its other side.
  void write(const T* p, const T* factor, T weight, E* y) const {
    Scratch<T> packed(divide_up(width_, kPanel<T>) * num_bases_ * kPanel<T>);
    pack_panels<T, T>(run_, p, num_bases_, width_, 1, thin_, packed.get());
    each_block([&](int64_t, int64_t begin, int64_t m, T* wide, T* scaled) {
      const E* x = x_ + begin * width_;
      if (!measured_) thin_product<T>(m, width_, widened<E>(x, m * width_, wide), width_, 1, p, thin_, scaled);
      const T* c = measured_ ? &coefficients_[begin * thin_] : scaled;
      for (int64_t i = 0; i < m * thin_; i += thin_)
        for (int64_t k = 0; k < thin_; k += kLanes<T>) store(scaled + i + k, load(c + i + k) * load(factor + k));
      add_low_rank<E, T>(x, scaled, thin_, packed.get(), m, width_, num_bases_, weight, y + begin * width_);
    });
  }

 private:
  // f(block, first row, rows, memory for the rows in T, memory for their coefficients)
  template <class F>
  void each_block(const F& f) const {
    parallel(run_, blocks_, grain_of(2 * kRowBlock * width_ * thin_), [&](int64_t first, int64_t last) {
      Scratch<T> wide(sizeof(E) == sizeof(T) ? 0 : kRowBlock * width_), spare(kRowBlock * thin_);
      for (int64_t block = first; block < last; ++block)
        f(block, block * kRowBlock, least(kRowBlock, rows_ - block * kRowBlock), wide.get(), spare.get());
    });
  }

  emcl::ParallelFor run_;
  const E* x_;
  int64_t rows_, width_, num_bases_, thin_, blocks_;
  Scratch<T> coefficients_, partial_, total_;
  bool measured_ = false;
};

template <class E>
void reconstruct(emcl::ParallelFor run, const E* x, const Compute<E>* r, const Compute<E>* scale, int64_t rows,
                 int64_t width, int64_t num_bases, Compute<E> weight, E* y) {
  using T = Compute<E>;
  const int64_t thin = thin_width<T>(num_bases);
  Scratch<T> padded(width * thin), factor(thin);
  pad_thin<T>(r, width, num_bases, thin, nullptr, padded.get());
  pad_thin<T>(scale, 1, num_bases, thin, nullptr, factor.get());
  Projection<E>(run, x, rows, width, num_bases, false).write(padded.get(), factor.get(), weight, y);
}

// With q = r·scale, c = x·q and e = weight·d_y·r:  d_x = d_y + e·qᵀ,  d_q = xᵀ·e,  d_r = weight·d_yᵀ·c + d_q·scale,
// d_scale = Σ_d d_q·r. The sums over rows are kept per split; splits do not depend on the number of threads.
template <class E>
void reconstruct_backward(emcl::ParallelFor run, const E* d_y, const E* x, const Compute<E>* r, const Compute<E>* scale,
                          int64_t rows, int64_t width, int64_t num_bases, Compute<E> weight, E* d_x, Compute<E>* d_r,
                          Compute<E>* d_scale) {
  using T = Compute<E>;
  const int64_t thin = thin_width<T>(num_bases);
  const int64_t size = width * thin;
  const int64_t blocks = divide_up(rows, kRowBlock);
  const int64_t splits = least<int64_t>(16, blocks);

  // q and r as thin matrices, and q in panels.
  Scratch<T> q(width * num_bases), scaled(size), plain(size);
  Scratch<T> packed(divide_up(width, kPanel<T>) * num_bases * kPanel<T>);
  for (int64_t d = 0; d < width; ++d)
    for (int64_t k = 0; k < num_bases; ++k) q[d * num_bases + k] = r[d * num_bases + k] * scale[k];
  pad_thin<T>(q.get(), width, num_bases, thin, nullptr, scaled.get());
  pad_thin<T>(r, width, num_bases, thin, nullptr, plain.get());
  pack_panels<T, T>(run, q.get(), num_bases, width, 1, num_bases, packed.get());

  // One pass over the rows: d_x of each, and what they give to the sums xᵀ·e and d_yᵀ·c of their split.
  Scratch<T> sums(splits * 2 * size);
  sums.clear(splits * 2 * size);
  parallel(run, splits, grain_of(4 * divide_up(rows, splits) * size), [&](int64_t first, int64_t last) {
    Scratch<T> c(kRowBlock * thin), e(kRowBlock * thin), wide_x(kRowBlock * width), wide_d(kRowBlock * width);
    for (int64_t split = first; split < last; ++split) {
      T* d_q_sum = &sums[split * 2 * size];
      T* d_r_sum = d_q_sum + size;
      for (int64_t block = split * blocks / splits; block < (split + 1) * blocks / splits; ++block) {
        const int64_t begin = block * kRowBlock;
        const int64_t m = least(kRowBlock, rows - begin);
        const T* x_rows = widened<E>(x + begin * width, m * width, wide_x.get());
        const T* d_y_rows = widened<E>(d_y + begin * width, m * width, wide_d.get());
        thin_product<T>(m, width, x_rows, width, 1, scaled.get(), thin, c.get());
        thin_product<T>(m, width, d_y_rows, width, 1, plain.get(), thin, e.get());
        for (int64_t i = 0; i < m * thin; ++i) e[i] *= weight;
        thin_product<T, true>(width, m, x_rows, 1, width, e.get(), thin, d_q_sum);
        thin_product<T, true>(width, m, d_y_rows, 1, width, c.get(), thin, d_r_sum);
        add_low_rank<E, T>(d_y + begin * width, e.get(), thin, packed.get(), m, width, num_bases, T(1),
                           d_x + begin * width);
      }
    }
  });

  // The splits in their order, and from q to r and the scale.
  for (int64_t k = 0; k < num_bases; ++k) d_scale[k] = 0;
  for (int64_t d = 0; d < width; ++d)
    for (int64_t k = 0; k < num_bases; ++k) {
      T d_q = 0, own = 0;
      for (int64_t split = 0; split < splits; ++split) {
        d_q += sums[split * 2 * size + d * thin + k];
        own += sums[split * 2 * size + size + d * thin + k];
      }
      d_r[d * num_bases + k] = weight * own + d_q * scale[k];
      d_scale[k] += d_q * r[d * num_bases + k];
    }
}

}  // namespace
