// One small block of texts and videos, from EM to cosine.
//
// A block of the release's evaluation has fewer frames and texts than channels, so that EM runs on them instead of on
// the Gram matrix: with S_b = Σ_a w·wᵀ of each video, gram·p = Σ_b f_bᵀ·S_b·(f_b·p) + tᵀ·(t·p).
#pragma once

#include "cpu/pooled.h"

namespace {

// The generating rows of a block, frames and then texts, and S_b of every video.
template <class T>
struct Generators {
  int64_t frames, videos, texts, width, rows;
  Scratch<T> x, squares, colsum;

  template <class E>
  Generators(const Pooling<E>& pool, T* kept)
      : frames(pool.size.frames),
        videos(pool.size.videos),
        texts(pool.size.texts),
        width(pool.size.width),
        rows(pool.rows + texts),
        x(rows * width),
        squares(videos * frames * frames),
        colsum(width) {
    for (int64_t i = 0; i < pool.rows * width; ++i) x[i] = widen(pool.frames[i]);
    for (int64_t i = 0; i < texts * width; ++i) x[pool.rows * width + i] = widen(pool.text[i]);

    // A frame counts in the column sums with the sum of its weights, and a text once.
    Scratch<T> counts(rows);
    for (int64_t i = pool.rows; i < rows; ++i) counts[i] = 1;
    group_runs(pool, 0, pool.groups, [&](int64_t first, int64_t last) {
      WeightSums<E> weights(pool);
      for (int64_t group = first; group < last; ++group) {
        weights.start(group, kept);
        keep_sums(weights, counts.get());
      }
    });
    colsum.clear(width);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t d = 0; d < width; ++d) colsum[d] += counts[i] * x[i * width + d];
  }

  template <class E>
  void keep_sums(WeightSums<E>& weights, T* counts) const {
    for (int64_t v = 0; v < weights.group.videos; ++v) {
      const int64_t video = weights.group.first_video + v;
      std::memcpy(&squares[video * frames * frames], weights.square_of(v), size_t(frames * frames) * sizeof(T));
      std::memcpy(&counts[video * frames], weights.counts_of(v), size_t(frames) * sizeof(T));
    }
  }

  // (GE), (GM) on x and S_b. Writes p, and leaves the scale in `em`.
  void iterate(Em<T>& em, const T* init, T* p) const {
    const int64_t thin = em.thin;
    Scratch<T> logits(width * thin), product(rows * thin), weighted(rows * thin);  // x·p and S·(x·p)
    start_from_colsum<T>(colsum.get(), init, width, em.num_bases, thin, logits.get());
    for (int64_t t = 0; t < em.settings.num_iters; ++t) {
      if (t == 0) {
        em.expect(logits.get(), p, 0, nothing);
      } else {
        em.expect(logits.get(), p, rows * thin, [&](int64_t begin, int64_t end) {
          thin_product<T>(end - begin, rows, &x[begin], 1, width, weighted.get(), thin, &logits[begin * thin]);
        });
      }
      thin_product<T>(rows, width, x.get(), width, 1, p, thin, product.get());
      weigh(thin, product.get(), weighted.get());
      normalise(em, product.get(), weighted.get());
    }
  }

  // weighted = S·product for the frames of each video; texts stay as they are.
  void weigh(int64_t thin, const T* product, T* weighted) const {
    const int64_t size = frames * thin;
    for (int64_t b = 0; b < videos; ++b)
      thin_product<T>(frames, frames, &squares[b * frames * frames], frames, 1, product + b * size, thin,
                      weighted + b * size);
    std::memcpy(weighted + videos * size, product + videos * size, size_t(texts * thin) * sizeof(T));
  }

  // (GM) by pᵀ·gram·p = Σ over rows of (x·p)·(S·x·p)
  void normalise(Em<T>& em, const T* product, const T* weighted) const {
    Scratch<T> squared(em.thin);
    squared.clear(em.thin);
    for (int64_t i = 0; i < rows * em.thin; i += em.thin)
      for (int64_t k = 0; k < em.thin; k += kLanes<T>)
        store(&squared[k], load(&squared[k]) + load(product + i + k) * load(weighted + i + k));
    em.normalise(squared.get());
  }
};

// ‖x‖ / ‖reconstruction‖ over all rows, both from the Gram matrix and the unnormalised p; 0 where all rows are zero,
// NaN where a square overflows.
template <class T>
T relative_scale(const T* gram, const T* p, const Em<T>& em) {
  const int64_t width = em.width, thin = em.thin;
  Scratch<T> r(width * thin), product(width * thin), inner(thin * thin), outer(thin * thin);
  for (int64_t d = 0; d < width; ++d)
    for (int64_t k = 0; k < thin; ++k) r[d * thin + k] = p[d * thin + k] * em.inverse[k];
  thin_product<T>(width, width, gram, width, 1, r.get(), thin, product.get());
  thin_product<T>(thin, width, r.get(), 1, thin, product.get(), thin, inner.get());  // rᵀ·gram·r
  thin_product<T>(thin, width, r.get(), 1, thin, r.get(), thin, outer.get());
  const auto factor = [&](int64_t k) { return em.scale[k] * em.times[k]; };
  T rows = 0, reconstruction = 0;
  for (int64_t d = 0; d < width; ++d) rows += gram[d * width + d];
  for (int64_t k = 0; k < thin; ++k)
    for (int64_t l = 0; l < thin; ++l)
      reconstruction += factor(k) * factor(l) * inner[k * thin + l] * outer[k * thin + l];
  if (reconstruction <= T(0)) return T(0);
  return std::sqrt(rows / reconstruction) + (reconstruction - reconstruction);
}

// cosine [texts, videos] of one block, with rows of stride `row`; init [K]
template <class E>
void pooled_block(const Pooling<E>& pool, emcl::Settings settings, const Compute<E>* init, int64_t num_bases,
                  Compute<E> residual_weight, bool relative, Compute<E>* cosine, int64_t row) {
  using T = Compute<E>;
  const int64_t width = pool.size.width;
  const int64_t rows = pool.rows + pool.size.texts;
  Scratch<T> kept(pool.rows * pool.size.texts);

  // Bases that start alike stay alike: EM runs on one of each.
  const Distinct<T> distinct = distinct_starts(init, num_bases);
  const int64_t count = distinct.count;
  Em<T> em(pool.run, width, count, settings, distinct.times.get());
  const int64_t thin = em.thin;
  Scratch<T> p(width * thin), starts(count);
  for (int64_t k = 0; k < count; ++k) starts[k] = init[distinct.first[k]];

  // EM on the rows where that is less work than on the Gram matrix, off which the norms of a relative weight are read.
  const int64_t thin_work = thin * settings.num_iters;
  T norms = 1;
  if (!relative && 4 * rows * thin_work < rows * (width + 1) + 2 * width * thin_work) {
    Generators<T>(pool, kept.get()).iterate(em, starts.get(), p.get());
  } else {
    Scratch<T> gram(width * width), colsum(width), logits(width * thin);
    pooled_moments(pool, gram.get(), colsum.get(), kept.get());
    start_from_colsum<T>(colsum.get(), starts.get(), width, count, thin, logits.get());
    em.iterate(gram.get(), p.get(), logits.get());
    if (relative) norms = relative_scale(gram.get(), p.get(), em);
  }

  // The similarity with the fitted map, in which a basis counts as often as it occurs.
  Scratch<T> r(width * count), scale(count);
  unpad_thin<T>(p.get(), width, count, thin, em.inverse.get(), r.get());
  for (int64_t k = 0; k < count; ++k) scale[k] = em.scale[k] * em.times[k] * norms;
  pooled_cosine(pool, PooledMap<E>(pool, r.get(), scale.get(), count, residual_weight), kept.get(), cosine,
                static_cast<T*>(nullptr), row);
}

}  // namespace
