// y = x + weight · (x·(r·scale))·rᵀ in one pass over the rows, and its backward.
#pragma once

#include "tile.h"

namespace {

// rᵀ [K, D] in panels of D
template <class T>
void pack_transposed(const T* r, int64_t width, int64_t bases, T* packed) {
  for (int64_t panel = 0; panel < divide_up(width, kPanel<T>); ++panel)
    pack_panel<T, T>(r, bases, width, 1, bases, panel * kPanel<T>, packed + panel * bases * kPanel<T>);
}

// y[m, D] = x[m, D] + weight · coefficients[m, K]·rᵀ
template <class E, class T>
void add_low_rank(const E* x, const T* coefficients, int64_t thin, const T* packed, int64_t m, int64_t width,
                  int64_t bases, T weight, E* y) {
  constexpr int64_t W = kPanel<T>;
  for (int64_t column = 0; column < width; column += W) {
    const T* panel = packed + column * bases;
    const int64_t valid = least(W, width - column);
    for (int64_t i = 0; i < m; i += kPanelRows)
      with_rows<kPanelRows>(least<int64_t>(kPanelRows, m - i), [&](auto count) {
        constexpr int MR = decltype(count)::value;
        Vec<T> acc[MR][kPanelVectors] = {};
        multiply<T, MR, kPanelVectors>(bases, coefficients + i * thin, thin, 1, panel, W, acc);
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
      });
  }
}

template <class E>
void reconstruct(emcl::ParallelFor run, const void* x_, const void* r_, const void* scale_, int64_t rows, int64_t width,
                 int64_t bases, double weight, void* y_) {
  using T = Compute<E>;
  const E* x = static_cast<const E*>(x_);
  const T* r = static_cast<const T*>(r_);
  E* y = static_cast<E*>(y_);
  const int64_t thin = thin_width<T>(bases);
  Scratch<T> scaled(width * thin), packed(divide_up(width, kPanel<T>) * bases * kPanel<T>);
  pad_thin<T>(r, width, bases, thin, static_cast<const T*>(scale_), scaled.get());
  pack_transposed(r, width, bases, packed.get());
  parallel(run, divide_up(rows, kRowBlock), grain_of(2 * kRowBlock * width * thin), [&](int64_t first, int64_t last) {
    Scratch<T> coefficients(kRowBlock * thin), wide(kRowBlock * width);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kRowBlock, m = least(kRowBlock, rows - begin);
      const E* from = x + begin * width;
      const T* a = widened<E>(from, m * width, wide.get());
      thin_product<T>(m, width, a, width, 1, scaled.get(), thin, coefficients.get());
      add_low_rank<E, T>(from, coefficients.get(), thin, packed.get(), m, width, bases, T(weight), y + begin * width);
    }
  });
}

// With q = r·scale, c = x·q and e = weight·d_y·r:  d_x = d_y + e·qᵀ,  d_q = xᵀ·e,  d_r = weight·d_yᵀ·c + d_q·scale,
// d_scale = Σ_d d_q·r. The sums over rows are kept per split; splits do not depend on the number of threads.
template <class E>
void reconstruct_backward(emcl::ParallelFor run, const void* d_y_, const void* x_, const void* r_, const void* scale_,
                          int64_t rows, int64_t width, int64_t bases, double weight, void* d_x_, void* d_r_,
                          void* d_scale_) {
  using T = Compute<E>;
  const E* x = static_cast<const E*>(x_);
  const E* d_y = static_cast<const E*>(d_y_);
  const T* r = static_cast<const T*>(r_);
  const T* scale = static_cast<const T*>(scale_);
  E* d_x = static_cast<E*>(d_x_);
  T* d_r = static_cast<T*>(d_r_);
  T* d_scale = static_cast<T*>(d_scale_);
  const int64_t thin = thin_width<T>(bases), size = width * thin;
  const int64_t blocks = divide_up(rows, kRowBlock), splits = least<int64_t>(16, blocks);
  Scratch<T> scaled(size), plain(size), packed(divide_up(width, kPanel<T>) * bases * kPanel<T>);
  Scratch<T> sums(splits * 2 * size), q(width * bases);
  for (int64_t d = 0; d < width; ++d)
    for (int64_t k = 0; k < bases; ++k) q[d * bases + k] = r[d * bases + k] * scale[k];
  pad_thin<T>(q.get(), width, bases, thin, nullptr, scaled.get());
  pad_thin<T>(r, width, bases, thin, nullptr, plain.get());
  pack_transposed(q.get(), width, bases, packed.get());
  std::memset(sums.get(), 0, size_t(splits * 2 * size) * sizeof(T));

  parallel(run, splits, grain_of(4 * divide_up(rows, splits) * size), [&](int64_t first, int64_t last) {
    Scratch<T> c(kRowBlock * thin), e(kRowBlock * thin), wide_x(kRowBlock * width), wide_d(kRowBlock * width);
    for (int64_t split = first; split < last; ++split) {
      T* d_q_sum = &sums[split * 2 * size];
      T* d_r_sum = d_q_sum + size;
      for (int64_t block = split * blocks / splits; block < (split + 1) * blocks / splits; ++block) {
        const int64_t begin = block * kRowBlock, m = least(kRowBlock, rows - begin);
        const T* a = widened<E>(x + begin * width, m * width, wide_x.get());
        const T* g = widened<E>(d_y + begin * width, m * width, wide_d.get());
        thin_product<T>(m, width, a, width, 1, scaled.get(), thin, c.get());
        thin_product<T>(m, width, g, width, 1, plain.get(), thin, e.get());
        for (int64_t i = 0; i < m * thin; ++i) e[i] *= T(weight);
        thin_product<T, true>(width, m, a, 1, width, e.get(), thin, d_q_sum);
        thin_product<T, true>(width, m, g, 1, width, c.get(), thin, d_r_sum);
        add_low_rank<E, T>(d_y + begin * width, e.get(), thin, packed.get(), m, width, bases, T(1), d_x + begin * width);
      }
    }
  });
  for (int64_t k = 0; k < bases; ++k) d_scale[k] = 0;
  for (int64_t d = 0; d < width; ++d)
    for (int64_t k = 0; k < bases; ++k) {
      T d_q = 0, own = 0;
      for (int64_t split = 0; split < splits; ++split) {
        d_q += sums[split * 2 * size + d * thin + k];
        own += sums[split * 2 * size + size + d * thin + k];
      }
      d_r[d * bases + k] = T(weight) * own + d_q * scale[k];
      d_scale[k] += d_q * r[d * bases + k];
    }
}

}  // namespace
