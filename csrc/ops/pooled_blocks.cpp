// _pooled_blocks: the pooled similarity in blocks, each with EM of its own, as the release evaluates.
#include <algorithm>

#include "ops/common.h"

namespace emcl {
namespace {

// text [A, D], frames [B, F, D], frame_mask [B, F], init [K], cosine [A, B]
void _pooled_blocks(const Tensor& text, const Tensor& frames, const Tensor& frame_mask, const Tensor& init,
                    int64_t em_block, double pooling_temperature, int64_t num_iters, double temperature,
                    double residual_weight, double eps, bool relative, const Tensor& cosine) {
  const Check check("_pooled_blocks", text);
  const Pool pool = pool_of(check, text, frames, frame_mask, pooling_temperature);
  const Settings settings{num_iters, temperature, eps};
  check_settings(check, settings);
  check.finite("residual_weight", residual_weight);
  check.require(em_block > 0, "em_block is ", em_block, "; expected one text and video at least");
  check.require(init.dim() == 1, "init has ", init.dim(), " dimensions; expected [K]");
  const int64_t num_bases = init.size(0);
  check.require(num_bases > 0, "init is empty; expected one basis at least");
  check_bases(check, num_bases, 1);
  check.numbers("init", init, {num_bases});
  check.numbers("cosine", cosine, {pool.texts, pool.videos});

  // A larger block is the one that holds everything; sums of the largest sizes would overflow.
  const int64_t block = std::min(em_block, std::max(pool.texts, pool.videos));
  const Scope scope(text);
  const Element element = element_of(text);
  kernels(element).pooled_blocks(scope.call(), element, pool, settings, block, rows(text), rows(frames),
                                 numbers(frame_mask), numbers(init), num_bases, residual_weight, relative,
                                 numbers_out(cosine));
}

EMCL_REGISTER(_pooled_blocks)

}  // namespace
}  // namespace emcl
