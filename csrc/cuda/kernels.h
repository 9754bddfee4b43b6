// What the CUDA library computes, free of torch: one function for each op on contiguous device memory. Every function
// only launches on the call's stream; nothing is copied to the host, and nothing waits.
#pragma once

#include <cstdint>
#include <functional>

#include "device.cuh"

namespace emcl {

enum class Element { float32, bfloat16, float16 };  // of the rows; everything else is float32

struct Call {
  Stream stream;
  Device device;
  std::function<void*(size_t)>
      workspace;  // bytes of device memory, aligned to 256, that live until the call's work is done
};

struct Settings {
  int64_t iters;
  double temperature;
  double eps;
};

// `problems` independent problems of the same shape, one after the other in memory.
struct Rows {
  int64_t problems, rows, width;
};

// Texts against videos of `frames` frames each.
struct Pool {
  int64_t texts, videos, frames, width;
  double temperature;
};

// A fitted map: y = x + weight·(x·(r·scale))·rᵀ. No bases: the identity.
struct Map {
  const float *responsibilities, *scale;  // [D, K], [K]
  int64_t bases;
  double weight;
};

// (G) x [P, N, D] → gram [P, D, D], colsum [P, D]
void moments(const Call&, Element, const void* x, Rows, float* gram, float* colsum);
void moments_backward(const Call&, Element, const void* x, const float* d_gram, const float* d_colsum, Rows, void* d_x);

// (GE), (GM) gram [P, D, D], logits [P, D, K] → responsibilities [P, D, K], scale [P, K]
void fit(const Call&, const float* gram, const float* logits, int64_t problems, int64_t width, int64_t bases, Settings,
         float* responsibilities, float* scale);
void fit_backward(const Call&, const float* gram, const float* logits, const float* d_responsibilities,
                  const float* d_scale, int64_t problems, int64_t width, int64_t bases, Settings, float* d_gram,
                  float* d_logits);

// (GR) x, y [P, N, D]
void reconstruct(const Call&, Element, const void* x, const float* responsibilities, const float* scale, Rows,
                 int64_t bases, double weight, void* y);
void reconstruct_backward(const Call&, Element, const void* d_y, const void* x, const float* responsibilities,
                          const float* scale, Rows, int64_t bases, double weight, void* d_x, float* d_responsibilities,
                          float* d_scale);

// All of EM in the Gram form. init [P, K], or [P, N, K] with per_row; mean_bases [P, K]
void project(const Call&, Element, const void* x, const float* init, bool per_row, Rows, int64_t bases, Settings,
             double weight, void* y, float* mean_bases, float* responsibilities, float* scale);

// text [A, D], frames [B, F, D], mask [B, F]; kept [B, F, A]: the inner products of frames and texts, which later
// passes need not make again, or null
void pooled_moments(const Call&, Element, Pool, const void* text, const void* frames, const float* mask, float* gram,
                    float* colsum, float* kept);
void pooled_moments_backward(const Call&, Element, Pool, const void* text, const void* frames, const float* mask,
                             const float* kept, const float* d_gram, const float* d_colsum, void* d_text,
                             void* d_frames);
// cosine, length [A, B]
void pooled_cosine(const Call&, Element, Pool, Map, const void* text, const void* frames, const float* mask,
                   const float* kept, float* cosine, float* length);
// pull_text [A, K], pull_frames [B, F, K]
void pooled_cosine_backward(const Call&, Element, Pool, Map, bool linear, const float* d_cosine, const float* cosine,
                            const float* length, const void* text, const void* frames, const float* mask,
                            const float* kept, void* d_text, void* d_frames, float* pull_text, float* pull_frames);
// Every block of `em_block` texts and videos is a problem of its own; init [K], cosine [A, B]
void pooled_blocks(const Call&, Element, Pool, Settings, int64_t em_block, const void* text, const void* frames,
                   const float* mask, const float* init, int64_t bases, double weight, bool relative, float* cosine);

}  // namespace emcl
