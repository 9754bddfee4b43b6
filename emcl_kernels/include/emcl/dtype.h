// Number types of rows, and what they are accumulated in.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <stdexcept>
#include <string>

namespace emcl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// float64 for rows of float64, float32 for all others.
inline ScalarType accumulation(ScalarType rows) {
  return rows == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f(zero) with a zero of the C++ type of x's numbers: float, double, or torch's BFloat16 or Half.
//
//   with_dtype(x, [&](auto zero) {
//     using E = decltype(zero);
//     ...
//   });
template <class F>
void with_dtype(const Tensor& x, const F& f) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(torch::headeronly::BFloat16{});
    case ScalarType::Half:
      return f(torch::headeronly::Half{});
    default:
      throw std::runtime_error(std::string("emcl: there is no kernel for ") +
                               torch::headeronly::toString(x.scalar_type()) +
                               "; expected float32, float64, bfloat16 or float16");
  }
}

}  // namespace emcl
