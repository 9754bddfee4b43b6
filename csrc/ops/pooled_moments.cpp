// _pooled_moments: gram and colsum of texts and of the frames pooled for each of them (docs/math.md, PG and PS), and
// its backward.
#include "ops/common.h"

namespace emcl {
namespace {

// text [A, D], frames [B, F, D], frame_mask [B, F], gram [D, D], colsum [D], kept [B, F, A] or empty
void _pooled_moments(const Tensor& text, const Tensor& frames, const Tensor& frame_mask, double pooling_temperature,
                     bool /*keep: kept is empty, or not*/, const Tensor& gram, const Tensor& colsum,
                     const Tensor& kept) {
  const Check check("_pooled_moments", text);
  const Pool pool = pool_of(check, text, frames, frame_mask, pooling_temperature);
  check.numbers("gram", gram, {pool.width, pool.width});
  check.numbers("colsum", colsum, {pool.width});
  check.numbers_or_none("kept", kept, {pool.videos, pool.frames, pool.texts});

  const Scope scope(text);
  const Element element = element_of(text);
  kernels(element).pooled_moments(scope.call(), element, pool, rows(text), rows(frames), numbers(frame_mask),
                                  numbers_out(gram), numbers_out(colsum), numbers_out(kept));
}

// An output that is not needed is empty.
void _pooled_moments_backward(const Tensor& d_gram, const Tensor& d_colsum, const Tensor& text, const Tensor& frames,
                              const Tensor& frame_mask, const Tensor& kept, double pooling_temperature, bool /*keep*/,
                              const Tensor& d_text, const Tensor& d_frames) {
  const Check check("_pooled_moments_backward", text);
  const Pool pool = pool_of(check, text, frames, frame_mask, pooling_temperature);
  check.numbers("d_gram", d_gram, {pool.width, pool.width});
  check.numbers("d_colsum", d_colsum, {pool.width});
  check.numbers_or_none("kept", kept, {pool.videos, pool.frames, pool.texts});
  check.rows_or_none("d_text", d_text, {pool.texts, pool.width});
  check.rows_or_none("d_frames", d_frames, {pool.videos, pool.frames, pool.width});

  const Scope scope(text);
  const Element element = element_of(text);
  kernels(element).pooled_moments_backward(scope.call(), element, pool, rows(text), rows(frames), numbers(frame_mask),
                                           numbers(kept), numbers(d_gram), numbers(d_colsum), rows_out(d_text),
                                           rows_out(d_frames));
}

EMCL_REGISTER(_pooled_moments)
EMCL_REGISTER(_pooled_moments_backward)

}  // namespace
}  // namespace emcl
