// em_moments: gram = xᵀx and colsum = xᵀ1 (docs/math.md, G), and its backward.
#include "ops/common.h"

namespace emcl {
namespace {

// x [*, N, D], gram [*, D, D], colsum [*, D]
void em_moments(const Tensor& x, const Tensor& gram, const Tensor& colsum) {
  const Check check("em_moments", x);
  const Rows shape = rows_of(check, x);
  check.numbers("gram", gram, {shape.problems, shape.width, shape.width});
  check.numbers("colsum", colsum, {shape.problems, shape.width});
  if (shape.problems == 0) return;

  const Scope scope(x);
  const Element element = element_of(x);
  kernels(element).moments(scope.call(), element, rows(x), shape, numbers_out(gram), numbers_out(colsum));
}

void _em_moments_backward(const Tensor& d_gram, const Tensor& d_colsum, const Tensor& x, const Tensor& d_x) {
  const Check check("_em_moments_backward", x);
  const Rows shape = rows_of(check, x);
  check.numbers("d_gram", d_gram, {shape.problems, shape.width, shape.width});
  check.numbers("d_colsum", d_colsum, {shape.problems, shape.width});
  check.rows("d_x", d_x, {shape.problems, shape.rows, shape.width});
  if (shape.problems == 0) return;

  const Scope scope(x);
  const Element element = element_of(x);
  kernels(element).moments_backward(scope.call(), element, rows(x), numbers(d_gram), numbers(d_colsum), shape,
                                    rows_out(d_x));
}

EMCL_REGISTER(em_moments)
EMCL_REGISTER(_em_moments_backward)

}  // namespace
}  // namespace emcl
