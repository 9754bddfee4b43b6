// EM on a Gram matrix: one launch where a cluster holds it, one for each iteration elsewhere (fit_plan.h).
#include <cstdlib>

#include "cuda/fit/fit_cluster.cuh"
#include "cuda/fit/fit_steps.h"

namespace emcl {

void fit(const Call& call, const float* gram, const float* logits, int64_t problems, int64_t width, int64_t num_bases,
         Settings settings, float* responsibilities, float* scale) {
  if (problems == 0) return;
  const ClusterProblem problem{gram,
                               logits,
                               responsibilities,
                               scale,
                               int(width),
                               int(num_bases),
                               int(settings.num_iters),
                               float(1 / settings.temperature),
                               float(settings.eps),
                               rows_are_aligned(gram, width)};
  const char* asked = std::getenv("EMCL_FIT");
  const FitWay way = fit_way(asked == nullptr ? "" : asked);
  const auto plan = [&](bool with_16) {
    return fit_plan(way, call.device.architecture, call.device.most_shared, with_16, problems, width, num_bases,
                    settings.num_iters);
  };
  FitPlan best = plan(true);
  if (best.cluster && fit_in_cluster(call, problem, best.held, problems)) return;
  if (best.cluster && way != FitWay::automatic)
    refuse_cluster(best.blocks, "this device has no room for " + std::to_string(best.blocks) + " blocks of " +
                                    std::to_string(best.shared) + " bytes at once");
  if (best.cluster) best = plan(false);
  fit_in_steps(call, best.step, gram, logits, problems, width, num_bases, settings, responsibilities, scale);
}

}  // namespace emcl
