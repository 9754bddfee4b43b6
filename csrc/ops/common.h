// What the ops share: they check their tensors, read the sizes off them, and call the kernel of their library's device.
//
// The same files are compiled for the CPU library, the CUDA library and the emulated one. Leading dimensions of a
// tensor count problems: sizes are read from its end.
#pragma once

#include <emcl/op.h>

#include <limits>

#include "kernels.h"
#if defined(EMCL_CUDA)
#include "cuda/scope.h"
#else
#include "cpu/scope.h"
#endif

namespace emcl {

inline Element element_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Element::float32;
    case ScalarType::BFloat16:
      return Element::bfloat16;
    case ScalarType::Half:
      return Element::float16;
#if !defined(EMCL_CUDA)
    case ScalarType::Double:
      return Element::float64;
#endif
    default:
      throw std::runtime_error(std::string("emcl: there is no kernel for ") +
                               torch::headeronly::toString(x.scalar_type()) + " on this device");
  }
}

// Memory of rows, and of everything else; null for an empty tensor.
inline const void* rows(const Tensor& t) { return t.const_data_ptr(); }
inline void* rows_out(const Tensor& t) { return t.mutable_data_ptr(); }
inline const Number* numbers(const Tensor& t) { return static_cast<const Number*>(t.const_data_ptr()); }
inline Number* numbers_out(const Tensor& t) { return static_cast<Number*>(t.mutable_data_ptr()); }

// Bases and frames that the kernels of a GPU have room for, and problems for which a launch counts its blocks, up to 16
// for each. Those of the CPU take any number.
#if defined(EMCL_CUDA)
constexpr int64_t kMostBases = 128, kMostFrames = 64, kMostProblems = int64_t(1) << 27;
#else
constexpr int64_t kMostBases = std::numeric_limits<int64_t>::max();
constexpr int64_t kMostFrames = kMostBases, kMostProblems = kMostBases;
#endif

inline void check_problems(const Check& check, int64_t problems) {
  check.require(problems <= kMostProblems, "there are ", problems, " problems; expected up to ", kMostProblems,
                "; split them over several calls");
}

// least: 0 where there may be no bases, as on the CPU
inline void check_bases(const Check& check, int64_t num_bases, int64_t least) {
  check.require(num_bases >= least && num_bases <= kMostBases, "there are ", num_bases, " bases; expected ", least,
                " to ", kMostBases);
}

// What is divided by, in float32 too.
inline void check_temperature(const Check& check, const char* name, double value) {
  check.finite(name, value);
  check.require(value >= double(std::numeric_limits<float>::min()), name, " is ", value,
                "; expected a number above 0 that float32 has");
}

inline void check_settings(const Check& check, const Settings& settings) {
  check.require(settings.num_iters > 0 && settings.num_iters <= kMostIterations, "num_iters is ", settings.num_iters,
                "; expected 1 to ", kMostIterations, " iterations");
  check_temperature(check, "temperature", settings.temperature);
  check.finite("eps", settings.eps);
  check.require(settings.eps == 0 || settings.eps >= kLeastEps, "eps is ", settings.eps, "; expected 0, or from ",
                kLeastEps, " on");
}

// x [*, N, D]
inline Rows rows_of(const Check& check, const Tensor& x) {
  const int64_t problems = check.problems("x", x, 2);
  const Rows shape{problems, x.size(-2), x.size(-1)};
  check.require(shape.rows > 0 && shape.width > 0, "x has no rows or no channels; expected one at least");
  check_problems(check, shape.problems);
  check.rows("x", x, {shape.problems, shape.rows, shape.width});
  return shape;
}

// text [A, D], frames [B, F, D], frame_mask [B, F]
inline Pool pool_of(const Check& check, const Tensor& text, const Tensor& frames, const Tensor& frame_mask,
                    double pooling_temperature) {
  check_temperature(check, "pooling_temperature", pooling_temperature);
  check.require(text.dim() == 2, "text has ", text.dim(), " dimensions; expected [A, D]");
  check.require(frames.dim() == 3, "frames has ", frames.dim(), " dimensions; expected [B, F, D]");
  const Pool pool{text.size(0), frames.size(0), frames.size(1), text.size(1), pooling_temperature};
  check.require(pool.texts > 0 && pool.videos > 0 && pool.frames > 0 && pool.width > 0,
                "text or frames is empty; expected one text, video, frame and channel at least");
  check.require(pool.frames <= kMostFrames, "there are ", pool.frames, " frames; expected up to ", kMostFrames);

  check.rows("text", text, {pool.texts, pool.width});
  check.rows("frames", frames, {pool.videos, pool.frames, pool.width});
  check.numbers("frame_mask", frame_mask, {pool.videos, pool.frames});
  return pool;
}

// responsibilities [D, K], scale [K]; none without bases
inline Map map_of(const Check& check, const Pool& pool, const Tensor& responsibilities, const Tensor& scale,
                  double weight) {
  check.finite("weight", weight);
  check.require(scale.dim() == 1, "scale has ", scale.dim(), " dimensions; expected [K]");
  const int64_t num_bases = scale.size(0);
  check_bases(check, num_bases, 0);
  check.numbers("responsibilities", responsibilities, {pool.width, num_bases});
  check.numbers("scale", scale, {num_bases});
  return {numbers(responsibilities), numbers(scale), num_bases, weight};
}

}  // namespace emcl
