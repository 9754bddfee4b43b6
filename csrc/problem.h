// What a kernel is asked to compute: number types, sizes and settings, the same for every device. Free of torch and of
// the standard library's code, so that it can be compiled for any instruction set.
#pragma once

#include <cstdint>

namespace emcl {

enum class Element { float32, float64, bfloat16, float16 };  // of the rows
constexpr int kElements = 4;

// What everything but the rows is kept in: float32 on a GPU, and on the CPU what the rows accumulate in, float64 for
// float64 and float32 for all others.
#if defined(EMCL_CUDA)
using Number = float;
#else
using Number = void;
#endif

enum class Form {
  gram,  // EM on xᵀx: its cost per iteration does not depend on the number of rows
  loop,  // EM on x itself: cheaper when there are few rows
};

struct Settings {
  int64_t num_iters;
  double temperature;
  double eps;
};

// Bounds of the settings, which emcl_kernels/checks.py has as well. EM has converged long before so many iterations,
// and their number times that of bases, channels or bytes is still an integer.
constexpr int64_t kMostIterations = 1000000;
// 1 / eps² is the largest factor that EM makes; float32 must have it.
constexpr double kLeastEps = 1e-18;

// `problems` independent problems of the same shape, one after the other in memory.
struct Rows {
  int64_t problems, rows, width;
};

// Texts against videos of `frames` frames each.
struct Pool {
  int64_t texts, videos, frames, width;
  double temperature;
};

// A fitted map: y = x + weight·(x·(r·scale))·rᵀ. No bases: the identity.
struct Map {
  const Number *responsibilities, *scale;  // [D, K], [K]
  int64_t num_bases;
  double weight;
};

}  // namespace emcl
