// What a library computes, free of torch: one function for each op, on contiguous memory of the library's device.
//
// This is the one list of them. Each library has its own functions of these types: the CPU's in cpu/, once per
// instruction set and number type, those of CUDA in cuda/. The ops (ops/) are the same for all.
#pragma once

#include "problem.h"
#if defined(EMCL_CUDA)
#include "cuda/call.h"
#else
#include "cpu/call.h"
#endif

namespace emcl {

// The types of the functions. Rows (x, y, text, frames, and their gradients) are in the element type.
namespace kernel {

// (G) x [P, N, D] → gram [P, D, D], colsum [P, D]
using moments = void(const Call&, Element, const void* x, Rows, Number* gram, Number* colsum);
using moments_backward = void(const Call&, Element, const void* x, const Number* d_gram, const Number* d_colsum, Rows,
                              void* d_x);

// (GE), (GM) gram [P, D, D], logits [P, D, K] → responsibilities [P, D, K], scale [P, K]
using fit = void(const Call&, const Number* gram, const Number* logits, int64_t problems, int64_t width,
                 int64_t num_bases, Settings, Number* responsibilities, Number* scale);
using fit_backward = void(const Call&, const Number* gram, const Number* logits, const Number* d_responsibilities,
                          const Number* d_scale, int64_t problems, int64_t width, int64_t num_bases, Settings,
                          Number* d_gram, Number* d_logits);

// (GR) x, y [P, N, D]
using reconstruct = void(const Call&, Element, const void* x, const Number* responsibilities, const Number* scale, Rows,
                         int64_t num_bases, double weight, void* y);
using reconstruct_backward = void(const Call&, Element, const void* d_y, const void* x, const Number* responsibilities,
                                  const Number* scale, Rows, int64_t num_bases, double weight, void* d_x,
                                  Number* d_responsibilities, Number* d_scale);

// All of EM in one call. init [P, K], or [P, N, K] with per_row; mean_bases [P, K]
using project = void(const Call&, Element, const void* x, const Number* init, bool per_row, Rows, int64_t num_bases,
                     Settings, Form, double residual_weight, void* y, Number* mean_bases, Number* responsibilities,
                     Number* scale);

// text [A, D], frames [B, F, D], frame_mask [B, F]; kept [B, F, A]: the inner products of frames and texts, which later
// passes need not make again, or null
using pooled_moments = void(const Call&, Element, Pool, const void* text, const void* frames, const Number* frame_mask,
                            Number* gram, Number* colsum, Number* kept);
using pooled_moments_backward = void(const Call&, Element, Pool, const void* text, const void* frames,
                                     const Number* frame_mask, const Number* kept, const Number* d_gram,
                                     const Number* d_colsum, void* d_text, void* d_frames);
// cosine, length [A, B]
using pooled_cosine = void(const Call&, Element, Pool, Map, const void* text, const void* frames,
                           const Number* frame_mask, const Number* kept, Number* cosine, Number* length);
// pull_text [A, K], pull_frames [B, F, K]. Here and in the backward above, an output that is not needed is null.
using pooled_cosine_backward = void(const Call&, Element, Pool, Map, bool linear, const Number* d_cosine,
                                    const Number* cosine, const Number* length, const void* text, const void* frames,
                                    const Number* frame_mask, const Number* kept, void* d_text, void* d_frames,
                                    Number* pull_text, Number* pull_frames);
// Every block of `em_block` texts and videos is a problem of its own; init [K], cosine [A, B]
using pooled_blocks = void(const Call&, Element, Pool, Settings, int64_t em_block, const void* text, const void* frames,
                           const Number* frame_mask, const Number* init, int64_t num_bases, double residual_weight,
                           bool relative, Number* cosine);

}  // namespace kernel

#define EMCL_FOR_EACH_KERNEL(DO) \
  DO(moments)                    \
  DO(moments_backward)           \
  DO(fit)                        \
  DO(fit_backward)               \
  DO(reconstruct)                \
  DO(reconstruct_backward)       \
  DO(project)                    \
  DO(pooled_moments)             \
  DO(pooled_moments_backward)    \
  DO(pooled_cosine)              \
  DO(pooled_cosine_backward)     \
  DO(pooled_blocks)

struct Kernels {
#define EMCL_POINTER(name) kernel::name* name;
  EMCL_FOR_EACH_KERNEL(EMCL_POINTER)
#undef EMCL_POINTER
};

// Those of this library for a number type of the rows; of the widest instruction set that the machine has.
const Kernels& kernels(Element);

#if defined(EMCL_CUDA)
#define EMCL_DECLARE(name) kernel::name name;
EMCL_FOR_EACH_KERNEL(EMCL_DECLARE)
#undef EMCL_DECLARE
#endif

}  // namespace emcl
