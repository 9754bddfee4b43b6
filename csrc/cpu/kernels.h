// What one instruction set offers: the same functions for each number type of the rows. Free of torch, so that only
// this project's code is compiled with the instruction set's flags.
#pragma once

#include <cstdint>

namespace emcl {

enum Element { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3, kElements = 4 };

// body(context, begin, end) over [0, count), by one or several threads, in chunks of at least `grain`.
using Body = void (*)(void* context, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t count, int64_t grain, Body body, void* context);

struct Settings {
  int64_t iters;
  double temperature;
  double eps;
};

// Texts against videos of `frames` frames each.
struct Pool {
  int64_t texts, videos, frames, width;
  double temperature;
};
// A fitted map: y = x + weight·(x·(r·scale))·rᵀ. No bases: the identity.
struct Map {
  const void *responsibilities, *scale;  // [D, K], [K]
  int64_t bases;
  double weight;
};

// Pointers are to contiguous memory. Rows (x, y, and their gradients) have the element type; everything else is in the
// type that it accumulates in: float, or double for double. One problem a call.
struct Kernels {
  void (*moments)(ParallelFor, const void* x, int64_t rows, int64_t width,  // x [N, D]
                  void* gram, void* colsum);                                // [D, D], [D]
  void (*moments_backward)(ParallelFor, const void* x, const void* d_gram, const void* d_colsum, int64_t rows,
                           int64_t width, void* d_x);
  void (*fit)(ParallelFor, const void* gram, const void* logits, int64_t width, int64_t bases, Settings,  // [D, K]
              void* responsibilities, void* scale);                                                       // [D, K], [K]
  void (*fit_backward)(ParallelFor, const void* gram, const void* logits, const void* d_responsibilities,
                       const void* d_scale, int64_t width, int64_t bases, Settings, void* d_gram, void* d_logits);
  void (*reconstruct)(ParallelFor, const void* x, const void* responsibilities, const void* scale, int64_t rows,
                      int64_t width, int64_t bases, double weight, void* y);
  void (*reconstruct_backward)(ParallelFor, const void* d_y, const void* x, const void* responsibilities,
                               const void* scale, int64_t rows, int64_t width, int64_t bases, double weight, void* d_x,
                               void* d_responsibilities, void* d_scale);
  // init [K], or [N, K] with per_row. loop: EM on the rows instead of their Gram matrix (plan.h says which is cheaper)
  void (*project)(ParallelFor, const void* x, const void* init, bool per_row, bool loop, int64_t rows, int64_t width,
                  int64_t bases, Settings, double weight, void* y, void* mean_bases, void* responsibilities,
                  void* scale);
  // text [A, D], frames [B, F, D], mask [B, F]; kept: the B·F·A inner products of frames and texts, which later passes
  // need not make again, or null
  void (*pooled_moments)(ParallelFor, Pool, const void* text, const void* frames, const void* mask, void* gram,
                         void* colsum, void* kept);
  void (*pooled_moments_backward)(ParallelFor, Pool, const void* text, const void* frames, const void* mask,
                                  const void* kept, const void* d_gram, const void* d_colsum, void* d_text,
                                  void* d_frames);
  void (*pooled_cosine)(ParallelFor, Pool, Map, const void* text, const void* frames, const void* mask,
                        const void* kept, void* cosine, void* length);  // [A, B], [A, B]
  void (*pooled_cosine_backward)(ParallelFor, Pool, Map, bool linear, const void* d_cosine, const void* cosine,
                                 const void* length, const void* text, const void* frames, const void* mask,
                                 const void* kept, void* d_text, void* d_frames, void* pull_text,  // [A, K]
                                 void* pull_frames);                                               // [B, F, K]
  // EM and cosine for one part of the texts and videos; cosine has rows of stride `row`. init [K]
  void (*pooled_block)(ParallelFor, Pool, Settings, const void* text, const void* frames, const void* mask,
                       const void* init, int64_t bases, double weight, bool relative, void* cosine, int64_t row);
};

extern const Kernels kBaseline[kElements];
#if defined(__x86_64__)
extern const Kernels kAvx2[kElements];
extern const Kernels kAvx512[kElements];
#endif

}  // namespace emcl
