// EMCL in one call: in the Gram form, or by the loop over the rows where there are few of them.
#pragma once

#include "fit.h"
#include "moments.h"
#include "reconstruct.h"

namespace {

// (G0) xᵀ·init for one start per row, in splits that do not depend on the number of threads.
template <class E>
void start_from_rows(emcl::ParallelFor run, const E* x, const Compute<E>* init, int64_t rows, int64_t width,
                     int64_t bases, int64_t thin, Compute<E>* logits) {
  using T = Compute<E>;
  const int64_t blocks = divide_up(rows, kRowBlock), splits = least<int64_t>(16, blocks), size = width * thin;
  Scratch<T> sums(splits * size);
  std::memset(sums.get(), 0, size_t(splits * size) * sizeof(T));
  parallel(run, splits, grain_of(divide_up(rows, splits) * size), [&](int64_t first, int64_t last) {
    Scratch<T> wide(kRowBlock * width), start(kRowBlock * thin);
    for (int64_t split = first; split < last; ++split)
      for (int64_t block = split * blocks / splits; block < (split + 1) * blocks / splits; ++block) {
        const int64_t begin = block * kRowBlock, m = least(kRowBlock, rows - begin);
        const T* a = widened<E>(x + begin * width, m * width, wide.get());
        pad_thin<T>(init + begin * bases, m, bases, thin, nullptr, start.get());
        thin_product<T, true>(width, m, a, 1, width, start.get(), thin, &sums[split * size]);
      }
  });
  add_up(sums.get(), splits, size, logits);
}

// The release's loop; bases are kept as x·p, and their lengths as a factor per column. Writes p to `p`.
template <class T>
void fit_by_loop(Em<T>& em, const T* x, const T* init, bool per_row, int64_t rows, T* p, T* mean_bases) {
  const int64_t width = em.width, thin = em.thin, row_blocks = divide_up(rows, kRowBlock);
  Scratch<T> logits(width * thin), bases(rows * thin), squares(row_blocks * thin), total(thin);
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t k = 0; k < thin; ++k)
      bases[n * thin + k] = k < em.bases ? init[per_row ? n * em.bases + k : k] : T(0);
  for (int64_t t = 0; t < em.settings.iters; ++t) {
    em.expect(logits.get(), p, rows * thin, [&](int64_t begin, int64_t end) {
      thin_product<T>(end - begin, rows, x + begin, 1, width, bases.get(), thin, &logits[begin * thin]);
    });
    parallel(em.run, row_blocks, grain_of(kRowBlock * width * thin), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * kRowBlock, m = least(kRowBlock, rows - begin);
        thin_product<T>(m, width, x + begin * width, width, 1, p, thin, &bases[begin * thin]);
        T* sums = &squares[block * thin];
        for (int64_t k = 0; k < thin; ++k) sums[k] = 0;
        for (int64_t i = begin; i < begin + m; ++i)
          for (int64_t k = 0; k < thin; k += kLanes<T>) {
            const Vec<T> value = load(&bases[i * thin + k]);
            store(sums + k, load(sums + k) + value * value);
          }
      }
    });
    add_up(squares.get(), row_blocks, thin, total.get());
    em.normalise(total.get());
  }
  for (int64_t k = 0; k < em.bases; ++k) mean_bases[k] = 0;
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t k = 0; k < em.bases; ++k) mean_bases[k] += bases[n * thin + k];
  for (int64_t k = 0; k < em.bases; ++k) mean_bases[k] *= em.inverse[k] * em.scale[k] / T(rows);
}

// (GR) with unnormalised p: y = x + weight·(x·p·factor)·pᵀ
template <class E>
class Projection {
 public:
  using T = Compute<E>;
  Projection(emcl::ParallelFor run, const E* x, int64_t rows, int64_t width, int64_t thin)
      : run_(run), x_(x), rows_(rows), width_(width), thin_(thin), blocks_(divide_up(rows, kRowBlock)),
        coefficients_(rows * thin), partial_(blocks_ * thin), total_(thin) {}

  // Keeps x·p for `write`. Returns its squared lengths.
  const T* measure(const T* p) {
    each_block([&](int64_t block, int64_t begin, int64_t m, const T* rows) {
      T *c = &coefficients_[begin * thin_], *sums = &partial_[block * thin_];
      thin_product<T>(m, width_, rows, width_, 1, p, thin_, c);
      for (int64_t k = 0; k < thin_; ++k) sums[k] = 0;
      for (int64_t i = 0; i < m * thin_; i += thin_)
        for (int64_t k = 0; k < thin_; k += kLanes<T>) store(sums + k, load(sums + k) + load(c + i + k) * load(c + i + k));
    });
    add_up(partial_.get(), blocks_, thin_, total_.get());
    measured_ = true;
    return total_.get();
  }

  void write(const T* p, const T* factor, T weight, E* y) {
    Scratch<T> packed(divide_up(width_, kPanel<T>) * thin_ * kPanel<T>);
    pack_panels<T, T>(run_, p, thin_, width_, 1, thin_, packed.get());
    each_block([&](int64_t, int64_t begin, int64_t m, const T* rows) {
      T* c = &coefficients_[begin * thin_];
      if (!measured_) thin_product<T>(m, width_, rows, width_, 1, p, thin_, c);
      for (int64_t i = 0; i < m * thin_; i += thin_)
        for (int64_t k = 0; k < thin_; k += kLanes<T>) store(c + i + k, load(c + i + k) * load(factor + k));
      add_low_rank<E, T>(x_ + begin * width_, c, thin_, packed.get(), m, width_, thin_, weight, y + begin * width_);
    });
  }

 private:
  template <class F>
  void each_block(const F& f) const {
    parallel(run_, blocks_, grain_of(2 * kRowBlock * width_ * thin_), [&](int64_t first, int64_t last) {
      Scratch<T> wide(kRowBlock * width_);
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * kRowBlock, m = least(kRowBlock, rows_ - begin);
        f(block, begin, m, widened<E>(x_ + begin * width_, m * width_, wide.get()));
      }
    });
  }

  emcl::ParallelFor run_;
  const E* x_;
  int64_t rows_, width_, thin_, blocks_;
  Scratch<T> coefficients_, partial_, total_;
  bool measured_ = false;
};

template <class E>
void project(emcl::ParallelFor run, const void* x, const void* init_, bool per_row, bool loop, int64_t rows,
             int64_t width, int64_t bases, emcl::Settings settings, double weight, void* y, void* mean_bases_,
             void* responsibilities, void* scale_) {
  using T = Compute<E>;
  const T* init = static_cast<const T*>(init_);
  T *mean_bases = static_cast<T*>(mean_bases_), *scale = static_cast<T*>(scale_);
  const Distinct<T> distinct = per_row ? Distinct<T>(bases, [](int64_t, int64_t) { return false; })
                                       : distinct_starts(init, bases);
  Em<T> em(run, width, distinct.count, settings, distinct.times.get());
  const int64_t count = distinct.count, thin = em.thin;
  Scratch<T> p(width * thin), starts(count), means(count);
  for (int64_t k = 0; k < count; ++k) starts[k] = init[distinct.first[k]];
  const T* start = per_row ? init : starts.get();
  Projection<E> projection(run, static_cast<const E*>(x), rows, width, thin);
  if (loop) {
    Scratch<T> wide(sizeof(E) == sizeof(T) ? 1 : rows * width);
    const T* a = widened<E>(static_cast<const E*>(x), rows * width, wide.get());
    fit_by_loop<T>(em, a, start, per_row, rows, p.get(), means.get());
  } else {
    Scratch<T> gram(width * width), colsum(width), product(width * thin);
    moments<E>(run, x, rows, width, gram.get(), colsum.get());
    if (per_row) {
      start_from_rows<E>(run, static_cast<const E*>(x), start, rows, width, bases, thin, product.get());
    } else {
      start_from_colsum<T>(colsum.get(), start, width, count, thin, product.get());
    }
    // Where the rows fit into the cache, the last lengths come from x·p, which the result needs anyway.
    const bool lengths_from_rows = rows <= 4 * width;
    for (int64_t t = 0; t < settings.iters; ++t) {
      em.expect(product.get(), p.get(), 0, nothing);
      if (t + 1 == settings.iters && lengths_from_rows) {
        em.normalise(projection.measure(p.get()));
      } else {
        em.maximise(gram.get(), p.get(), product.get());
      }
    }
    for (int64_t k = 0; k < count; ++k) means[k] = 0;
    for (int64_t d = 0; d < width; ++d)
      for (int64_t k = 0; k < count; ++k) means[k] += colsum[d] * p[d * thin + k];
    for (int64_t k = 0; k < count; ++k) means[k] *= em.inverse[k] * em.scale[k] / T(rows);
  }
  distinct.expand(p.get(), width, thin, em.inverse.get(), static_cast<T*>(responsibilities));
  for (int64_t k = 0; k < bases; ++k) {
    scale[k] = em.scale[distinct.of[k]];
    mean_bases[k] = means[distinct.of[k]];
  }
  Scratch<T> factor(thin);  // r = p·inverse on both sides of the scale
  for (int64_t k = 0; k < thin; ++k) factor[k] = em.inverse[k] * em.inverse[k] * em.scale[k] * em.times[k];
  projection.write(p.get(), factor.get(), T(weight), static_cast<E*>(y));
}

}  // namespace
