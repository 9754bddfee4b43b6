// A toy op in a library of its own: y = 2·factor·x, in C++ for the CPU. It needs no other file but the public headers,
// and torch calls it once the library is loaded.
#include <emcl/op.h>

namespace {

using emcl::Check;
using emcl::Tensor;

// to = 2·factor·from, both [*, N, D]; each problem on a thread.
template <class E>
void double_problems(int64_t problems, int64_t size, const E* from, double factor, E* to) {
  emcl::for_each_problem(problems, [&](int64_t problem) {
    for (int64_t i = problem * size; i < (problem + 1) * size; ++i) to[i] = E(2 * factor * double(from[i]));
  });
}

void double_into(int64_t problems, const Tensor& from, double factor, const Tensor& to) {
  const int64_t size = from.size(-2) * from.size(-1);
  emcl::with_dtype(from, [&](auto zero) {
    using E = decltype(zero);
    double_problems(problems, size, static_cast<const E*>(from.const_data_ptr()), factor,
                    static_cast<E*>(to.mutable_data_ptr()));
  });
}

void double_rows(const Tensor& x, double factor, const Tensor& y) {
  const Check check("double_rows", x);
  const int64_t problems = check.problems("x", x, 2);
  check.rows("y", y, {problems, x.size(-2), x.size(-1)});
  double_into(problems, x, factor, y);
}

// x only says the shape: the gradient does not depend on it.
void _double_rows_backward(const Tensor& d_y, const Tensor& x, double factor, const Tensor& d_x) {
  const Check check("_double_rows_backward", x);
  const int64_t problems = check.problems("x", x, 2);
  check.rows("d_y", d_y, {problems, x.size(-2), x.size(-1)});
  check.rows("d_x", d_x, {problems, x.size(-2), x.size(-1)});
  double_into(problems, d_y, factor, d_x);
}

}  // namespace

EMCL_REGISTER(double_rows)
EMCL_REGISTER(_double_rows_backward)
