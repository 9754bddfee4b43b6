// The pooled similarity as the table of kernels has it.
#pragma once

#include "pooled_backward.h"
#include "pooled_block.h"

namespace {

template <class E>
void call_pooled_moments(emcl::ParallelFor run, emcl::Pool size, const void* text, const void* frames, const void* mask,
                         void* gram, void* colsum, void* kept) {
  using T = Compute<E>;
  pooled_moments(Pooling<E>(run, text, frames, mask, size), static_cast<T*>(gram), static_cast<T*>(colsum),
                 static_cast<T*>(kept));
}

template <class E>
void call_pooled_moments_backward(emcl::ParallelFor run, emcl::Pool size, const void* text, const void* frames,
                                  const void* mask, const void* kept, const void* d_gram, const void* d_colsum,
                                  void* d_text, void* d_frames) {
  using T = Compute<E>;
  pooled_moments_backward(Pooling<E>(run, text, frames, mask, size), static_cast<const T*>(d_gram),
                          static_cast<const T*>(d_colsum), static_cast<const T*>(kept), static_cast<E*>(d_text),
                          static_cast<E*>(d_frames));
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
                                 const void* frames, const void* mask, const void* kept, void* d_text, void* d_frames,
                                 void* pull_text, void* pull_frames) {
  using T = Compute<E>;
  const Pooling<E> pool(run, text, frames, mask, size);
  pooled_cosine_backward(pool, map_of(pool, map), static_cast<const T*>(d_cosine), static_cast<const T*>(cosine),
                         static_cast<const T*>(length), static_cast<const T*>(kept), linear, static_cast<E*>(d_text),
                         static_cast<E*>(d_frames), static_cast<T*>(pull_text), static_cast<T*>(pull_frames));
}

}  // namespace
