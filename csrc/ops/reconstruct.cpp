// em_reconstruct: the fitted map of rows (docs/math.md, GR), and its backward.
#include "ops/common.h"

namespace emcl {
namespace {

// x [*, N, D], responsibilities [*, D, K], scale [*, K]
struct Fitted {
  Rows shape;
  int64_t num_bases;
};
Fitted fitted_of(const Check& check, const Tensor& x, const Tensor& responsibilities, const Tensor& scale,
                 double weight) {
  const Rows shape = rows_of(check, x);
  check.finite("weight", weight);
  check.problems("scale", scale, 1);
  const int64_t num_bases = scale.size(-1);
#if defined(EMCL_CUDA)
  check_bases(check, num_bases, 1);
#endif
  check.numbers("responsibilities", responsibilities, {shape.problems, shape.width, num_bases});
  check.numbers("scale", scale, {shape.problems, num_bases});
  return {shape, num_bases};
}

void em_reconstruct(const Tensor& x, const Tensor& responsibilities, const Tensor& scale, double weight,
                    const Tensor& y) {
  const Check check("em_reconstruct", x);
  const auto [shape, num_bases] = fitted_of(check, x, responsibilities, scale, weight);
  check.rows("y", y, {shape.problems, shape.rows, shape.width});
  if (shape.problems == 0) return;

  const Scope scope(x);
  const Element element = element_of(x);
  kernels(element).reconstruct(scope.call(), element, rows(x), numbers(responsibilities), numbers(scale), shape,
                               num_bases, weight, rows_out(y));
}

void _em_reconstruct_backward(const Tensor& d_y, const Tensor& x, const Tensor& responsibilities, const Tensor& scale,
                              double weight, const Tensor& d_x, const Tensor& d_responsibilities,
                              const Tensor& d_scale) {
  const Check check("_em_reconstruct_backward", x);
  const auto [shape, num_bases] = fitted_of(check, x, responsibilities, scale, weight);
  check.rows("d_y", d_y, {shape.problems, shape.rows, shape.width});
  check.rows("d_x", d_x, {shape.problems, shape.rows, shape.width});
  check.numbers("d_responsibilities", d_responsibilities, {shape.problems, shape.width, num_bases});
  check.numbers("d_scale", d_scale, {shape.problems, num_bases});
  if (shape.problems == 0) return;

  const Scope scope(x);
  const Element element = element_of(x);
  kernels(element).reconstruct_backward(scope.call(), element, rows(d_y), rows(x), numbers(responsibilities),
                                        numbers(scale), shape, num_bases, weight, rows_out(d_x),
                                        numbers_out(d_responsibilities), numbers_out(d_scale));
}

EMCL_REGISTER(em_reconstruct)
EMCL_REGISTER(_em_reconstruct_backward)

}  // namespace
}  // namespace emcl
