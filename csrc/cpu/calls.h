// The kernels as their table has them (kernels.h): memory gets its type, and problems their turn.
//
// The functions that this calls take one problem each, and pointers of the types that they compute with.
#pragma once

#include "cpu/fit.h"
#include "cpu/moments.h"
#include "cpu/pooled_backward.h"
#include "cpu/pooled_block.h"
#include "cpu/project.h"
#include "cpu/reconstruct.h"
#include "kernels.h"

namespace {

inline void on_one_thread(int64_t count, int64_t, emcl::Body body, void* context) { body(context, 0, count); }

// f(problem, threads for it). Many problems run one a thread; few run one after the other, each on all threads. The
// bits are the same.
template <class F>
void for_each_problem(const emcl::Call& call, int64_t problems, const F& f) {
  if (problems == 1 || problems < call.threads) {
    for (int64_t i = 0; i < problems; ++i) f(i, call.parallel_for);
    return;
  }
  parallel(call.parallel_for, problems, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i, on_one_thread);
  });
}

// For rows of E. A pointer to one problem of a batch is `first + problem * size`.
template <class E>
struct Calls {
  using T = Compute<E>;
  using Call = emcl::Call;
  using Element = emcl::Element;  // known from E, and so without a name below
  using Settings = emcl::Settings;
  using ParallelFor = emcl::ParallelFor;

  static const E* rows(const void* memory) { return static_cast<const E*>(memory); }
  static E* rows(void* memory) { return static_cast<E*>(memory); }
  static const T* numbers(const void* memory) { return static_cast<const T*>(memory); }
  static T* numbers(void* memory) { return static_cast<T*>(memory); }

  static void moments(const Call& call, Element, const void* x, emcl::Rows shape, void* gram, void* colsum) {
    const int64_t size = shape.rows * shape.width;
    const int64_t gram_size = shape.width * shape.width;
    for_each_problem(call, shape.problems, [&](int64_t i, ParallelFor run) {
      ::moments<E>(run, rows(x) + i * size, shape.rows, shape.width, numbers(gram) + i * gram_size,
                   numbers(colsum) + i * shape.width);
    });
  }

  static void moments_backward(const Call& call, Element, const void* x, const void* d_gram, const void* d_colsum,
                               emcl::Rows shape, void* d_x) {
    const int64_t size = shape.rows * shape.width;
    const int64_t gram_size = shape.width * shape.width;
    for_each_problem(call, shape.problems, [&](int64_t i, ParallelFor run) {
      ::moments_backward<E>(run, rows(x) + i * size, numbers(d_gram) + i * gram_size,
                            numbers(d_colsum) + i * shape.width, shape.rows, shape.width, rows(d_x) + i * size);
    });
  }

  static void fit(const Call& call, const void* gram, const void* logits, int64_t problems, int64_t width,
                  int64_t num_bases, Settings settings, void* responsibilities, void* scale) {
    const int64_t gram_size = width * width;
    const int64_t size = width * num_bases;
    for_each_problem(call, problems, [&](int64_t i, ParallelFor run) {
      ::fit<T>(run, numbers(gram) + i * gram_size, numbers(logits) + i * size, width, num_bases, settings,
               numbers(responsibilities) + i * size, numbers(scale) + i * num_bases);
    });
  }

  static void fit_backward(const Call& call, const void* gram, const void* logits, const void* d_responsibilities,
                           const void* d_scale, int64_t problems, int64_t width, int64_t num_bases, Settings settings,
                           void* d_gram, void* d_logits) {
    const int64_t gram_size = width * width;
    const int64_t size = width * num_bases;
    for_each_problem(call, problems, [&](int64_t i, ParallelFor run) {
      ::fit_backward<T>(run, numbers(gram) + i * gram_size, numbers(logits) + i * size,
                        numbers(d_responsibilities) + i * size, numbers(d_scale) + i * num_bases, width, num_bases,
                        settings, numbers(d_gram) + i * gram_size, numbers(d_logits) + i * size);
    });
  }

  static void reconstruct(const Call& call, Element, const void* x, const void* responsibilities, const void* scale,
                          emcl::Rows shape, int64_t num_bases, double weight, void* y) {
    const int64_t size = shape.rows * shape.width;
    const int64_t map_size = shape.width * num_bases;
    for_each_problem(call, shape.problems, [&](int64_t i, ParallelFor run) {
      ::reconstruct<E>(run, rows(x) + i * size, numbers(responsibilities) + i * map_size,
                       numbers(scale) + i * num_bases, shape.rows, shape.width, num_bases, T(weight),
                       rows(y) + i * size);
    });
  }

  static void reconstruct_backward(const Call& call, Element, const void* d_y, const void* x,
                                   const void* responsibilities, const void* scale, emcl::Rows shape, int64_t num_bases,
                                   double weight, void* d_x, void* d_responsibilities, void* d_scale) {
    const int64_t size = shape.rows * shape.width;
    const int64_t map_size = shape.width * num_bases;
    for_each_problem(call, shape.problems, [&](int64_t i, ParallelFor run) {
      ::reconstruct_backward<E>(run, rows(d_y) + i * size, rows(x) + i * size, numbers(responsibilities) + i * map_size,
                                numbers(scale) + i * num_bases, shape.rows, shape.width, num_bases, T(weight),
                                rows(d_x) + i * size, numbers(d_responsibilities) + i * map_size,
                                numbers(d_scale) + i * num_bases);
    });
  }

  static void project(const Call& call, Element, const void* x, const void* init, bool per_row, emcl::Rows shape,
                      int64_t num_bases, Settings settings, emcl::Form form, double residual_weight, void* y,
                      void* mean_bases, void* responsibilities, void* scale) {
    const int64_t size = shape.rows * shape.width;
    const int64_t init_size = per_row ? shape.rows * num_bases : num_bases;
    for_each_problem(call, shape.problems, [&](int64_t i, ParallelFor run) {
      ::project<E>(run, rows(x) + i * size, numbers(init) + i * init_size, per_row, form, shape.rows, shape.width,
                   num_bases, settings, T(residual_weight), rows(y) + i * size, numbers(mean_bases) + i * num_bases,
                   numbers(responsibilities) + i * shape.width * num_bases, numbers(scale) + i * num_bases);
    });
  }

  static void pooled_moments(const Call& call, Element, emcl::Pool size, const void* text, const void* frames,
                             const void* frame_mask, void* gram, void* colsum, void* kept) {
    const Pooling<E> pool(call.parallel_for, rows(text), rows(frames), numbers(frame_mask), size);
    ::pooled_moments(pool, numbers(gram), numbers(colsum), numbers(kept));
  }

  static void pooled_moments_backward(const Call& call, Element, emcl::Pool size, const void* text, const void* frames,
                                      const void* frame_mask, const void* kept, const void* d_gram,
                                      const void* d_colsum, void* d_text, void* d_frames) {
    const Pooling<E> pool(call.parallel_for, rows(text), rows(frames), numbers(frame_mask), size);
    ::pooled_moments_backward(pool, numbers(d_gram), numbers(d_colsum), numbers(kept), rows(d_text), rows(d_frames));
  }

  static void pooled_cosine(const Call& call, Element, emcl::Pool size, emcl::Map map, const void* text,
                            const void* frames, const void* frame_mask, const void* kept, void* cosine, void* length) {
    const Pooling<E> pool(call.parallel_for, rows(text), rows(frames), numbers(frame_mask), size);
    ::pooled_cosine(pool, fitted(pool, map), numbers(kept), numbers(cosine), numbers(length), size.videos);
  }

  static void pooled_cosine_backward(const Call& call, Element, emcl::Pool size, emcl::Map map, bool linear,
                                     const void* d_cosine, const void* cosine, const void* length, const void* text,
                                     const void* frames, const void* frame_mask, const void* kept, void* d_text,
                                     void* d_frames, void* pull_text, void* pull_frames) {
    const Pooling<E> pool(call.parallel_for, rows(text), rows(frames), numbers(frame_mask), size);
    const Cosines<T> given{numbers(d_cosine), numbers(cosine), numbers(length)};
    const Targets<E> to{rows(d_text), rows(d_frames), numbers(pull_text), numbers(pull_frames)};
    ::pooled_cosine_backward(pool, fitted(pool, map), given, numbers(kept), linear, to);
  }

  static void pooled_blocks(const Call& call, Element, emcl::Pool all, Settings settings, int64_t em_block,
                            const void* text, const void* frames, const void* frame_mask, const void* init,
                            int64_t num_bases, double residual_weight, bool relative, void* cosine) {
    const int64_t across = divide_up(all.videos, em_block);
    const int64_t down = divide_up(all.texts, em_block);
    for_each_problem(call, across * down, [&](int64_t block, ParallelFor run) {
      const int64_t first_text = block / across * em_block;
      const int64_t first_video = block % across * em_block;
      emcl::Pool part = all;
      part.texts = least(em_block, all.texts - first_text);
      part.videos = least(em_block, all.videos - first_video);

      const Pooling<E> pool(run, rows(text) + first_text * all.width,
                            rows(frames) + first_video * all.frames * all.width,
                            numbers(frame_mask) + first_video * all.frames, part);
      pooled_block(pool, settings, numbers(init), num_bases, T(residual_weight), relative,
                   numbers(cosine) + first_text * all.videos + first_video, all.videos);
    });
  }

 private:
  static PooledMap<E> fitted(const Pooling<E>& pool, const emcl::Map& map) {
    return PooledMap<E>(pool, numbers(map.responsibilities), numbers(map.scale), map.num_bases, T(map.weight));
  }
};

}  // namespace
