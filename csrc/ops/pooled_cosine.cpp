// _pooled_cosine: cosines of texts with the frames pooled for each of them, both through a fitted map (docs/math.md,
// PC), and its backward.
#include "ops/common.h"

namespace emcl {
namespace {

// text [A, D], frames [B, F, D], frame_mask [B, F], kept [B, F, A] or empty, cosine and length [A, B]
void _pooled_cosine(const Tensor& text, const Tensor& frames, const Tensor& frame_mask, const Tensor& kept,
                    const Tensor& responsibilities, const Tensor& scale, double weight, double pooling_temperature,
                    bool /*linear: for backward*/, const Tensor& cosine, const Tensor& length) {
  const Check check("_pooled_cosine", text);
  const Pool pool = pool_of(check, text, frames, frame_mask, pooling_temperature);
  const Map map = map_of(check, pool, responsibilities, scale, weight);
  check.numbers_or_none("kept", kept, {pool.videos, pool.frames, pool.texts});
  check.numbers("cosine", cosine, {pool.texts, pool.videos});
  check.numbers("length", length, {pool.texts, pool.videos});

  const Scope scope(text);
  const Element element = element_of(text);
  kernels(element).pooled_cosine(scope.call(), element, pool, map, rows(text), rows(frames), numbers(frame_mask),
                                 numbers(kept), numbers_out(cosine), numbers_out(length));
}

// pull_text [A, K], pull_frames [B, F, K]; an output that is not needed is empty
void _pooled_cosine_backward(const Tensor& d_cosine, const Tensor& text, const Tensor& frames, const Tensor& frame_mask,
                             const Tensor& kept, const Tensor& responsibilities, const Tensor& scale,
                             const Tensor& cosine, const Tensor& length, double weight, double pooling_temperature,
                             bool linear, const Tensor& d_text, const Tensor& d_frames, const Tensor& pull_text,
                             const Tensor& pull_frames) {
  const Check check("_pooled_cosine_backward", text);
  const Pool pool = pool_of(check, text, frames, frame_mask, pooling_temperature);
  const Map map = map_of(check, pool, responsibilities, scale, weight);
  check.numbers("d_cosine", d_cosine, {pool.texts, pool.videos});
  check.numbers("cosine", cosine, {pool.texts, pool.videos});
  check.numbers("length", length, {pool.texts, pool.videos});
  check.numbers_or_none("kept", kept, {pool.videos, pool.frames, pool.texts});
  check.rows_or_none("d_text", d_text, {pool.texts, pool.width});
  check.rows_or_none("d_frames", d_frames, {pool.videos, pool.frames, pool.width});
  check.numbers_or_none("pull_text", pull_text, {pool.texts, map.num_bases});
  check.numbers_or_none("pull_frames", pull_frames, {pool.videos, pool.frames, map.num_bases});

  const Scope scope(text);
  const Element element = element_of(text);
  kernels(element).pooled_cosine_backward(scope.call(), element, pool, map, linear, numbers(d_cosine), numbers(cosine),
                                          numbers(length), rows(text), rows(frames), numbers(frame_mask), numbers(kept),
                                          rows_out(d_text), rows_out(d_frames), numbers_out(pull_text),
                                          numbers_out(pull_frames));
}

EMCL_REGISTER(_pooled_cosine)
EMCL_REGISTER(_pooled_cosine_backward)

}  // namespace
}  // namespace emcl
