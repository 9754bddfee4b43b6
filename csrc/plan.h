// The cost model of EM (docs/math.md): which form to run, its tiles, and what it moves and computes.
// One header for the CPU kernels, the bindings and the tests, so that all of them answer alike.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "problem.h"
#include "tiles.h"

namespace emcl {

// Fewer rows go by the loop whatever the cost: their Gram matrix cancels in float32 where their sum is small.
constexpr int64_t kFewRows = 16;

// double: exact to 2^53, and a product of four large sizes cannot overflow as it would in int64.
struct Cost {
  double flops;
  double bytes;  // read and written, each pass over an operand counted once
};

struct Plan {
  Form form;            // the one with fewer FLOPs; a tie goes to the Gram form, which reads x less often
  int64_t row_tile;     // rows of x taken at a time
  int64_t column_tile;  // channels of the smallest unit of an EM step
  Cost gram;
  Cost loop;
};

namespace plan_detail {

inline void require_positive(const char* argument, int64_t value) {
  if (value < 1) {
    throw std::invalid_argument(std::string(argument) + " is " + std::to_string(value) +
                                ", expected at least 1; pass a positive " + argument);
  }
}

}  // namespace plan_detail

// Gram: half of the symmetric product, T iterations on D x D, two thin products for the reconstruction.
inline Cost gram_cost(int64_t rows, int64_t width, int64_t bases, int64_t iters, int64_t element_size) {
  const double n = double(rows), d = double(width), k = double(bases), t = double(iters);
  const double gram_element_size = double(std::max<int64_t>(4, element_size));  // accumulated in float32 or wider
  return {n * d * (d + 1) + 2 * d * d * k * t + 4 * n * d * k,
          3 * n * d * double(element_size) + d * d * t * gram_element_size};
}

// Loop: two thin products in each of T iterations, one for the reconstruction.
inline Cost loop_cost(int64_t rows, int64_t width, int64_t bases, int64_t iters, int64_t element_size) {
  const double n = double(rows), d = double(width), k = double(bases), t = double(iters);
  return {4 * n * d * k * t + 2 * n * d * k, ((2 * t + 1) * n * d + n * d) * double(element_size)};
}

// Throws std::invalid_argument, naming the argument, unless all sizes are positive.
inline Plan plan(int64_t rows, int64_t width, int64_t bases, int64_t iters, int64_t element_size) {
  plan_detail::require_positive("rows", rows);
  plan_detail::require_positive("width", width);
  plan_detail::require_positive("bases", bases);
  plan_detail::require_positive("iters", iters);
  plan_detail::require_positive("element_size", element_size);

  Plan result{};
  result.gram = gram_cost(rows, width, bases, iters, element_size);
  result.loop = loop_cost(rows, width, bases, iters, element_size);
  result.form = result.gram.flops <= result.loop.flops ? Form::gram : Form::loop;
  result.row_tile = std::min(rows, result.form == Form::gram ? kStrip : kRowBlock);
  result.column_tile = std::min(width, kChannelBlock);
  return result;
}

struct PooledCost {
  Cost forward;
  Cost backward;  // with the gradient "identity" or "linear"
};

// The pooled similarity, by its leading terms: what is of size A·B·F·D, A·B·F·F, A·B·F·K, or of the rows times D and K.
// No bases: without EM. kept: with EM, the inner products of texts and frames are kept by the moments for the cosine
// and for backward, and not made again. Bytes are those of text, frames, and what is kept, each pass over it counted
// once.
inline PooledCost pooled_cost(int64_t texts, int64_t videos, int64_t frames, int64_t width, int64_t bases,
                              int64_t iters, int64_t element_size, bool kept) {
  plan_detail::require_positive("texts", texts);
  plan_detail::require_positive("videos", videos);
  plan_detail::require_positive("frames", frames);
  plan_detail::require_positive("width", width);
  plan_detail::require_positive("iters", iters);
  plan_detail::require_positive("element_size", element_size);
  if (bases < 0) plan_detail::require_positive("bases", bases);
  const double a = double(texts), bf = double(videos) * double(frames), f = double(frames), d = double(width);
  const double k = double(bases), t = double(iters), rows = a + bf, pairs = a * double(videos);
  const double wide = double(std::max<int64_t>(4, element_size)), read = rows * d * double(element_size);
  const double dots = 2 * a * bf * d, products = bf * (f + 1) * d + 2 * a * bf * f;  // t·fᵀ; F×F per video, and times w
  PooledCost cost{{dots + products, read + 2 * pairs * wide},
                  {3 * dots + products + a * bf * (f + 1) + 2 * bf * f * d, 2 * read + 3 * pairs * wide}};
  if (bases > 0) {
    cost.forward.flops += a * bf * (f + 1) + 2 * bf * f * d + rows * d * (d + 1)    // S, S·f, half of the Gram matrix
                          + 2 * d * d * k * t + 2 * rows * d * k + 2 * a * bf * k;  // EM; in the bases; the correction
    cost.forward.bytes += read + d * d * t * wide;
    cost.backward.flops += 4 * rows * d * k + 6 * a * bf * k;
    if (kept) {
      cost.forward.bytes += 2 * a * bf * wide;
      cost.backward.bytes += a * bf * wide;
      cost.backward.flops -= dots;
    } else {
      cost.forward.flops += dots;
    }
  }
  return cost;
}

}  // namespace emcl
