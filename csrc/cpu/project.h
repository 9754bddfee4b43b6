// EMCL in one call: in the Gram form, or by the loop over the rows where there are few of them.
#pragma once

#include "cpu/fit.h"
#include "cpu/moments.h"
#include "cpu/reconstruct.h"

namespace {

// (G0) xᵀ·init for one start per row, in splits that do not depend on the number of threads.
template <class E>
void start_from_rows(emcl::ParallelFor run, const E* x, const Compute<E>* init, int64_t rows, int64_t width,
                     int64_t num_bases, int64_t thin, Compute<E>* logits) {
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
        pad_thin<T>(init + begin * num_bases, m, num_bases, thin, nullptr, start.get());
        thin_product<T, true>(width, m, a, 1, width, start.get(), thin, &sums[split * size]);
      }
  });
  add_up(sums.get(), splits, size, logits);
}

// The release's loop. Bases are kept as x·p by `projection`, and their lengths as a factor per column.
template <class E, class T>
void fit_by_loop(Em<T>& em, const E* x, const T* init, bool per_row, int64_t rows, T* p, Projection<E>& projection) {
  const int64_t width = em.width, thin = em.thin;
  T* bases = projection.coefficients();
  Scratch<T> logits(width * thin), wide(sizeof(E) == sizeof(T) ? 0 : rows * width);
  const T* a = widened<E>(x, rows * width, wide.get());
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t k = 0; k < thin; ++k)
      bases[n * thin + k] = k < em.num_bases ? init[per_row ? n * em.num_bases + k : k] : T(0);
  for (int64_t t = 0; t < em.settings.num_iters; ++t) {
    em.expect(logits.get(), p, rows * thin, [&](int64_t begin, int64_t end) {
      thin_product<T>(end - begin, rows, a + begin, 1, width, bases, thin, &logits[begin * thin]);
    });
    em.normalise(projection.measure(p));
  }
}

template <class E>
void project(emcl::ParallelFor run, const E* x, const Compute<E>* init, bool per_row, emcl::Form form, int64_t rows,
             int64_t width, int64_t num_bases, emcl::Settings settings, Compute<E> residual_weight, E* y,
             Compute<E>* mean_bases, Compute<E>* responsibilities, Compute<E>* scale) {
  using T = Compute<E>;
  const bool loop = form == emcl::Form::loop;
  const Distinct<T> distinct =
      per_row ? Distinct<T>(num_bases, [](int64_t, int64_t) { return false; }) : distinct_starts(init, num_bases);
  Em<T> em(run, width, distinct.count, settings, distinct.times.get());
  const int64_t count = distinct.count, thin = em.thin;
  Scratch<T> p(width * thin), starts(count), means(thin);
  for (int64_t k = 0; k < count; ++k) starts[k] = init[distinct.first[k]];
  const T* start = per_row ? init : starts.get();
  // Where the rows fit into the cache, the last lengths come from x·p, which the result needs anyway.
  const bool lengths_from_rows = loop || rows <= 4 * width;
  Projection<E> projection(run, x, rows, width, count, lengths_from_rows);
  means.clear(thin);
  if (loop) {
    fit_by_loop(em, x, start, per_row, rows, p.get(), projection);
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t k = 0; k < thin; ++k) means[k] += projection.coefficients()[n * thin + k];
  } else {
    Scratch<T> gram(width * width), colsum(width), product(width * thin);
    moments<E>(run, x, rows, width, gram.get(), colsum.get());
    if (per_row) {
      start_from_rows<E>(run, x, start, rows, width, num_bases, thin, product.get());
    } else {
      start_from_colsum<T>(colsum.get(), start, width, count, thin, product.get());
    }
    for (int64_t t = 0; t < settings.num_iters; ++t) {
      em.expect(product.get(), p.get(), 0, nothing);
      if (t + 1 == settings.num_iters && lengths_from_rows) {
        em.normalise(projection.measure(p.get()));
      } else {
        em.maximise(gram.get(), p.get(), product.get());
      }
    }
    for (int64_t d = 0; d < width; ++d)
      for (int64_t k = 0; k < thin; ++k) means[k] += colsum[d] * p[d * thin + k];
  }
  distinct.expand(p.get(), width, thin, em.inverse.get(), responsibilities);
  for (int64_t k = 0; k < num_bases; ++k) {
    scale[k] = em.scale[distinct.of[k]];
    mean_bases[k] = means[distinct.of[k]] * em.inverse[distinct.of[k]] * scale[k] / T(rows);
  }
  Scratch<T> factor(thin);  // r = p·inverse on both sides of the scale
  for (int64_t k = 0; k < thin; ++k) factor[k] = em.inverse[k] * em.inverse[k] * em.scale[k] * em.times[k];
  projection.write(p.get(), factor.get(), residual_weight, y);
}

}  // namespace
