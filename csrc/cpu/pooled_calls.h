// The pooled similarity as the table of kernels has it, and one block of it from EM to cosine.
#pragma once

#include "pooled_backward.h"

namespace {

template <class E>
void call_pooled_moments(emcl::ParallelFor run, emcl::Pool size, const void* text, const void* frames,
                         const void* mask, void* gram, void* colsum, void* kept) {
  using T = Compute<E>;
  pooled_moments(Pooling<E>(run, text, frames, mask, size), static_cast<T*>(gram), static_cast<T*>(colsum),
                 static_cast<T*>(kept));
}

template <class E>
void call_pooled_moments_backward(emcl::ParallelFor run, emcl::Pool size, const void* text, const void* frames,
                                  const void* mask, const void* d_gram, const void* d_colsum, void* d_text,
                                  void* d_frames) {
  using T = Compute<E>;
  pooled_moments_backward(Pooling<E>(run, text, frames, mask, size), static_cast<const T*>(d_gram),
                          static_cast<const T*>(d_colsum), static_cast<E*>(d_text), static_cast<E*>(d_frames));
}

template <class E>
PooledMap<E> map_of(const Pooling<E>& pool, const emcl::Map& map) {
  using T = Compute<E>;
  return PooledMap<E>(pool, static_cast<const T*>(map.responsibilities), static_cast<const T*>(map.scale), map.bases,
                      T(map.weight));
}

template <class E>
void call_pooled_cosine(emcl::ParallelFor run, emcl::Pool size, emcl::Map map, const void* text, const void* frames,
                        const void* mask, const void* kept, void* cosine, void* length) {
  using T = Compute<E>;
  const Pooling<E> pool(run, text, frames, mask, size);
  pooled_cosine(pool, map_of(pool, map), static_cast<const T*>(kept), static_cast<T*>(cosine), static_cast<T*>(length),
                size.videos);
}

template <class E>
void call_pooled_cosine_backward(emcl::ParallelFor run, emcl::Pool size, emcl::Map map, bool linear,
                                 const void* d_cosine, const void* cosine, const void* length, const void* text,
                                 const void* frames, const void* mask, void* d_text, void* d_frames, void* pull_text,
                                 void* pull_frames) {
  using T = Compute<E>;
  const Pooling<E> pool(run, text, frames, mask, size);
  pooled_cosine_backward(pool, map_of(pool, map), static_cast<const T*>(d_cosine), static_cast<const T*>(cosine),
                         static_cast<const T*>(length), linear, static_cast<E*>(d_text), static_cast<E*>(d_frames),
                         static_cast<T*>(pull_text), static_cast<T*>(pull_frames));
}

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
                  const void* frames, const void* mask, const void* init, int64_t bases, double weight, bool relative,
                  void* cosine, int64_t row) {
  using T = Compute<E>;
  const int64_t width = size.width, rows = size.videos * size.frames;
  const Pooling<E> pool(run, text, frames, mask, size);
  Scratch<T> gram(width * width), colsum(width), kept((rows + size.videos) * size.texts), r(width * bases), scale(bases);
  pooled_moments(pool, gram.get(), colsum.get(), kept.get());
  {
    Em<T> em(run, width, bases, settings);
    Scratch<T> p(width * em.thin), product(width * em.thin);
    start_from_colsum<T>(colsum.get(), static_cast<const T*>(init), width, bases, em.thin, product.get());
    em.iterate(gram.get(), p.get(), product.get());
    unpad_thin<T>(p.get(), width, bases, em.thin, em.inverse.get(), r.get());
    for (int64_t k = 0; k < bases; ++k) scale[k] = em.scale[k];
    if (relative) {
      const T factor = relative_scale<T>(gram.get(), r.get(), scale.get(), width, bases, em.thin);
      for (int64_t k = 0; k < bases; ++k) scale[k] *= factor;
    }
  }
  pooled_cosine(pool, PooledMap<E>(pool, r.get(), scale.get(), bases, T(weight)), kept.get(), static_cast<T*>(cosine),
                static_cast<T*>(nullptr), row);
}

}  // namespace
