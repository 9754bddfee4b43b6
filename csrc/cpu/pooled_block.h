// One small block of texts and videos, from EM to cosine.
//
// A block of the release's evaluation has fewer frames and texts than channels, so that EM runs on them instead of on
// the Gram matrix: with S_b = Σ_a w·wᵀ of each video, gram·p = Σ_b f_bᵀ·S_b·(f_b·p) + tᵀ·(t·p).
#pragma once

#include "pooled.h"

namespace {

// The generating rows of a block, frames and then texts, and S_b of every video.
template <class T>
struct Generators {
  int64_t frames, videos, texts, width, rows;
  Scratch<T> x, squares, colsum;

  template <class E>
  Generators(const Pooling<E>& pool, T* kept)
      : frames(pool.size.frames), videos(pool.size.videos), texts(pool.size.texts), width(pool.size.width),
        rows(pool.rows + texts), x(rows * width), squares(videos * frames * frames), colsum(width) {
    for (int64_t i = 0; i < pool.rows * width; ++i) x[i] = widen(pool.frames[i]);
    for (int64_t i = 0; i < texts * width; ++i) x[pool.rows * width + i] = widen(pool.text[i]);
    Scratch<T> counts(rows);
    for (int64_t i = pool.rows; i < rows; ++i) counts[i] = 1;
    weigh_videos(pool, 0, pool.groups, kept, [&](const Group<E>& g, int64_t v, const T* square, const T* count) {
      const int64_t video = g.first_video + v;
      std::memcpy(&squares[video * frames * frames], square, size_t(frames * frames) * sizeof(T));
      std::memcpy(&counts[video * frames], count, size_t(frames) * sizeof(T));
    });
    colsum.clear(width);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t d = 0; d < width; ++d) colsum[d] += counts[i] * x[i * width + d];
  }

  // (GE), (GM) on x and S_b. Writes p; leaves the scale in `em`, and product = x·p and weighted = S·(x·p) as they are
  // after the last iteration.
  void iterate(Em<T>& em, const T* init, T* p, T* product, T* weighted) const {
    const int64_t thin = em.thin, size = frames * thin, in_videos = videos * frames;
    Scratch<T> logits(width * thin), squared(thin);
    start_from_colsum<T>(colsum.get(), init, width, em.bases, thin, logits.get());
    for (int64_t t = 0; t < em.settings.iters; ++t) {
      if (t == 0) {
        em.expect(logits.get(), p, 0, nothing);
      } else {
        em.expect(logits.get(), p, rows * thin, [&](int64_t begin, int64_t end) {
          thin_product<T>(end - begin, rows, &x[begin], 1, width, weighted, thin, &logits[begin * thin]);
        });
      }
      thin_product<T>(rows, width, x.get(), width, 1, p, thin, product);
      for (int64_t b = 0; b < videos; ++b)
        thin_product<T>(frames, frames, &squares[b * frames * frames], frames, 1, product + b * size, thin, weighted + b * size);
      std::memcpy(weighted + in_videos * thin, product + in_videos * thin, size_t(texts * thin) * sizeof(T));
      squared.clear(thin);
      for (int64_t i = 0; i < rows * thin; i += thin)
        for (int64_t k = 0; k < thin; k += kLanes<T>)
          store(&squared[k], load(&squared[k]) + load(product + i + k) * load(weighted + i + k));
      em.normalise(squared.get());
    }
  }

  // ‖pooled rows and texts‖ / ‖their reconstruction‖, from the inner products of x with itself and of x·r with S·(x·r).
  T relative_scale(const T* r, const T* scale, int64_t bases, const T* product, const T* weighted, const T* inverse,
                   int64_t thin) const {
    T total = 0, reconstruction = 0;
    for (int64_t b = 0; b < videos; ++b)
      for (int64_t i = 0; i < frames; ++i)
        for (int64_t j = 0; j < frames; ++j) {
          const T *fi = &x[(b * frames + i) * width], *fj = &x[(b * frames + j) * width];
          T inner = 0;
          for (int64_t d = 0; d < width; ++d) inner += fi[d] * fj[d];
          total += squares[(b * frames + i) * frames + j] * inner;
        }
    for (int64_t i = videos * frames * width; i < rows * width; ++i) total += x[i] * x[i];
    for (int64_t k = 0; k < bases; ++k)
      for (int64_t l = 0; l < bases; ++l) {
        T inner = 0, outer = 0;
        for (int64_t i = 0; i < rows; ++i) inner += product[i * thin + k] * weighted[i * thin + l];
        for (int64_t d = 0; d < width; ++d) outer += r[d * bases + k] * r[d * bases + l];
        reconstruction += inner * inverse[k] * scale[k] * inverse[l] * scale[l] * outer;
      }
    return std::sqrt(total / reconstruction);
  }
};

// ‖x‖ / ‖reconstruction‖ over all rows, both from the Gram matrix.
template <class T>
T relative_scale(const T* gram, const T* r, const T* scale, int64_t width, int64_t bases, int64_t thin) {
  Scratch<T> scaled(width * thin), product(width * thin), inner(thin * thin), outer(thin * thin);
  pad_thin<T>(r, width, bases, thin, scale, scaled.get());
  thin_product<T>(width, width, gram, width, 1, scaled.get(), thin, product.get());
  thin_product<T>(thin, width, scaled.get(), 1, thin, product.get(), thin, inner.get());
  pad_thin<T>(r, width, bases, thin, nullptr, scaled.get());
  thin_product<T>(thin, width, scaled.get(), 1, thin, scaled.get(), thin, outer.get());
  T rows = 0, reconstruction = 0;
  for (int64_t d = 0; d < width; ++d) rows += gram[d * width + d];
  for (int64_t i = 0; i < thin * thin; ++i) reconstruction += inner[i] * outer[i];
  return std::sqrt(rows / reconstruction);
}

template <class E>
void pooled_block(emcl::ParallelFor run, emcl::Pool size, emcl::Settings settings, const void* text,
                  const void* frames, const void* mask, const void* init_, int64_t bases, double weight, bool relative,
                  void* cosine, int64_t row) {
  using T = Compute<E>;
  const T* init = static_cast<const T*>(init_);
  const int64_t width = size.width;
  const Pooling<E> pool(run, text, frames, mask, size);
  Scratch<T> kept((pool.rows + size.videos) * size.texts);
  const Distinct<T> distinct = distinct_starts(init, bases);
  Em<T> em(run, width, distinct.count, settings, distinct.times.get());
  const int64_t count = distinct.count, thin = em.thin, rows = pool.rows + size.texts;
  Scratch<T> p(width * thin), starts(count), r(width * count), scale(count);
  for (int64_t k = 0; k < count; ++k) starts[k] = init[distinct.first[k]];
  const auto finish = [&](const auto& relative_scale_of) {
    unpad_thin<T>(p.get(), width, count, thin, em.inverse.get(), r.get());
    for (int64_t k = 0; k < count; ++k) scale[k] = em.scale[k] * distinct.times[k];
    const T factor = relative ? relative_scale_of() : T(1);
    for (int64_t k = 0; k < count; ++k) scale[k] *= factor;
  };

  const int64_t thin_work = thin * settings.iters;
  if (4 * rows * thin_work < rows * (width + 1) + 2 * width * thin_work) {
    const Generators<T> block(pool, kept.get());
    Scratch<T> product(rows * thin), weighted(rows * thin);
    block.iterate(em, starts.get(), p.get(), product.get(), weighted.get());
    finish([&] {
      return block.relative_scale(r.get(), scale.get(), count, product.get(), weighted.get(), em.inverse.get(), thin);
    });
  } else {
    Scratch<T> gram(width * width), colsum(width), logits(width * thin);
    pooled_moments(pool, gram.get(), colsum.get(), kept.get());
    start_from_colsum<T>(colsum.get(), starts.get(), width, count, thin, logits.get());
    em.iterate(gram.get(), p.get(), logits.get());
    finish([&] { return relative_scale<T>(gram.get(), r.get(), scale.get(), width, count, thin); });
  }
  pooled_cosine(pool, PooledMap<E>(pool, r.get(), scale.get(), count, T(weight)), kept.get(), static_cast<T*>(cosine),
                static_cast<T*>(nullptr), row);
}

}  // namespace
