// _em_project_fixed: EMCL in one call, with the fitted map as a constant to gradients.
#include <cstdlib>
#include <string>

#include "ops/common.h"
#include "plan.h"

namespace emcl {
namespace {

enum class Asked { automatic, gram, loop };

// EMCL_FORM overrides the cost model, for tests and measurements.
Asked asked_form() {
  const char* value = std::getenv("EMCL_FORM");
  const std::string form = value == nullptr ? "" : value;
  if (form.empty() || form == "auto") return Asked::automatic;
  if (form == "gram") return Asked::gram;
  if (form == "loop") return Asked::loop;
  throw std::invalid_argument("emcl: EMCL_FORM is \"" + form + "\"; expected auto, gram or loop");
}

#if defined(EMCL_CUDA)
Form form_of(const Rows&, int64_t, int64_t, int64_t) {
  if (asked_form() == Asked::loop)
    throw std::invalid_argument("emcl: form is loop; the CUDA kernels have the Gram form only; unset EMCL_FORM");
  return Form::gram;
}
#else
Form form_of(const Rows& shape, int64_t num_bases, int64_t num_iters, int64_t element_size) {
  const Asked asked = asked_form();
  if (asked != Asked::automatic) return asked == Asked::loop ? Form::loop : Form::gram;
  if (shape.rows < kFewRows) return Form::loop;
  return plan(shape.rows, shape.width, num_bases, num_iters, element_size).form;
}
#endif

// x and y [*, N, D], init [*, K] or [*, N, K], mean_bases [*, K], responsibilities [*, D, K], scale [*, K]
void _em_project_fixed(const Tensor& x, const Tensor& init, int64_t num_iters, double temperature,
                       double residual_weight, double eps, bool /*linear: for backward*/, const Tensor& y,
                       const Tensor& mean_bases, const Tensor& responsibilities, const Tensor& scale) {
  const Check check("_em_project_fixed", x);
  const Rows shape = rows_of(check, x);
  const Settings settings{num_iters, temperature, eps};
  check_settings(check, settings);
  check.finite("residual_weight", residual_weight);

  check.problems("init", init, 1);
  const int64_t num_bases = init.size(-1);
  const bool per_row = init.dim() == x.dim();
  check.require(num_bases > 0, "init is empty; expected one basis at least");
  check_bases(check, num_bases, 1);
  if (per_row) {
    check.numbers("init", init, {shape.problems, shape.rows, num_bases});
  } else {
    check.numbers("init", init, {shape.problems, num_bases});
  }

  check.rows("y", y, {shape.problems, shape.rows, shape.width});
  check.numbers("mean_bases", mean_bases, {shape.problems, num_bases});
  check.numbers("responsibilities", responsibilities, {shape.problems, shape.width, num_bases});
  check.numbers("scale", scale, {shape.problems, num_bases});
  const Form form = form_of(shape, num_bases, num_iters, int64_t(x.element_size()));
  if (shape.problems == 0) return;

  const Scope scope(x);
  const Element element = element_of(x);
  kernels(element).project(scope.call(), element, rows(x), numbers(init), per_row, shape, num_bases, settings, form,
                           residual_weight, rows_out(y), numbers_out(mean_bases), numbers_out(responsibilities),
                           numbers_out(scale));
}

EMCL_REGISTER(_em_project_fixed)

}  // namespace
}  // namespace emcl
