// em_fit: EM on a Gram matrix (docs/math.md, GE and GM), and its backward.
#include "ops/common.h"

namespace emcl {
namespace {

struct FitShape {
  int64_t problems, width, num_bases;
};

// gram [*, D, D], logits [*, D, K]
FitShape fit_shape(const Check& check, const Tensor& gram, const Tensor& logits) {
  const int64_t problems = check.problems("logits", logits, 2);
  const FitShape shape{problems, logits.size(-2), logits.size(-1)};
  check.require(shape.width > 0 && shape.num_bases > 0, "logits is empty; expected one channel and basis at least");
  check_bases(check, shape.num_bases, 1);
  check_problems(check, shape.problems);
  check.require(gram.scalar_type() == accumulation(gram.scalar_type()), "gram is not in float32 or float64");
  check.numbers("gram", gram, {shape.problems, shape.width, shape.width});
  check.numbers("logits", logits, {shape.problems, shape.width, shape.num_bases});
  return shape;
}

// responsibilities [*, D, K], scale [*, K]
void em_fit(const Tensor& gram, const Tensor& logits, int64_t num_iters, double temperature, double eps,
            const Tensor& responsibilities, const Tensor& scale) {
  const Check check("em_fit", gram);
  const FitShape shape = fit_shape(check, gram, logits);
  const Settings settings{num_iters, temperature, eps};
  check_settings(check, settings);
  check.numbers("responsibilities", responsibilities, {shape.problems, shape.width, shape.num_bases});
  check.numbers("scale", scale, {shape.problems, shape.num_bases});
  if (shape.problems == 0) return;

  const Scope scope(gram);
  kernels(element_of(gram))
      .fit(scope.call(), numbers(gram), numbers(logits), shape.problems, shape.width, shape.num_bases, settings,
           numbers_out(responsibilities), numbers_out(scale));
}

void _em_fit_backward(const Tensor& d_responsibilities, const Tensor& d_scale, const Tensor& gram, const Tensor& logits,
                      int64_t num_iters, double temperature, double eps, const Tensor& d_gram, const Tensor& d_logits) {
  const Check check("_em_fit_backward", gram);
  const FitShape shape = fit_shape(check, gram, logits);
  const Settings settings{num_iters, temperature, eps};
  check_settings(check, settings);
  check.numbers("d_responsibilities", d_responsibilities, {shape.problems, shape.width, shape.num_bases});
  check.numbers("d_scale", d_scale, {shape.problems, shape.num_bases});
  check.numbers("d_gram", d_gram, {shape.problems, shape.width, shape.width});
  check.numbers("d_logits", d_logits, {shape.problems, shape.width, shape.num_bases});
  if (shape.problems == 0) return;

  const Scope scope(gram);
  kernels(element_of(gram))
      .fit_backward(scope.call(), numbers(gram), numbers(logits), numbers(d_responsibilities), numbers(d_scale),
                    shape.problems, shape.width, shape.num_bases, settings, numbers_out(d_gram), numbers_out(d_logits));
}

EMCL_REGISTER(em_fit)
EMCL_REGISTER(_em_fit_backward)

}  // namespace
}  // namespace emcl
