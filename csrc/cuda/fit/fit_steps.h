// EM with one launch for each iteration (docs/math.md, GE and GM): for devices without clusters, for Gram matrices that
// do not fit into one, and for whoever needs every iteration.
#pragma once

#include "cuda/fit/fit_plan.h"
#include "kernels.h"

namespace emcl {

struct Step {
  const float* gram;              // [P, D, D]
  const float* previous;          // [P, D, K], channels `previous_stride` apart: gram·r of the step before
  const float* previous_squares;  // [P, blocks, K]; null in the first step, whose `previous` are the logits
  float* product;                 // [P, D, stored], channels `stride` apart  out: gram·r
  float* responsibilities;        // [P, D, stored], channels `stride` apart  out, or null
  float* squares;                 // [P, blocks, K]  out: shares of the squared lengths
  float* column_sums;             // [P, K]  out: of p, or null
  int width, num_bases, blocks, previous_stride, stride;
  int stored;  // columns written: the bases, or more with zeros behind them
  float inverse_temperature, eps;
  bool aligned;
};

// What all steps of some problems have in common; they write [P, D, K] matrices.
Step first_step(const StepShape&, const float* gram, const float* logits, int64_t width, int64_t num_bases,
                const Settings&);
void launch_step(const Call&, const StepShape&, const Step&, int64_t problems);

// All iterations, for as many problems at a time as the shape says.
void fit_in_steps(const Call&, const StepShape&, const float* gram, const float* logits, int64_t problems,
                  int64_t width, int64_t num_bases, const Settings&, float* responsibilities, float* scale);

inline float* floats(const Call& call, int64_t count) {
  return static_cast<float*>(call.workspace(size_t(count) * sizeof(float)));
}

}  // namespace emcl
