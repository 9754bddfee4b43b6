// EM on a Gram matrix: one launch where a cluster holds it, one for each iteration elsewhere (fit_plan.h).
#include "fit_cluster.cuh"
#include "fit_steps.h"

namespace emcl {

void fit(const Call& call, const float* gram, const float* logits, int64_t problems, int64_t width, int64_t bases,
         Settings settings, float* responsibilities, float* scale) {
  if (problems == 0) return;
  const ClusterProblem problem{gram,
                               logits,
                               responsibilities,
                               scale,
                               int(width),
                               int(bases),
                               int(settings.iters),
                               float(1 / settings.temperature),
                               float(settings.eps),
                               rows_are_aligned(gram, width)};
  const auto plan = [&](int largest) {
    return fit_plan(call.device.architecture, call.device.most_shared, largest, problems, width, bases, settings.iters);
  };
  FitPlan best = plan(largest_cluster(call.device.architecture));
  if (best.cluster && fit_in_cluster(call, problem, best.held, problems)) return;
  if (best.cluster) best = plan(8);
  fit_in_steps(call, best.step, gram, logits, problems, width, bases, settings, responsibilities, scale);
}

}  // namespace emcl
