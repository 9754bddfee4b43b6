// What the ops share: they check their tensors, read the sizes off them, and call the kernel of their library's device.
//
// The same files are compiled for the CPU library, the CUDA library and the emulated one. Leading dimensions of a
// tensor count problems: sizes are read from its end.
#pragma once

#include <emcl/op.h>

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
      throw std::invalid_argument(std::string("emcl: there is no kernel for ") +
                                  torch::headeronly::toString(x.scalar_type()) + " on this device");
  }
}

// Memory of rows, and of everything else; null for an empty tensor.
inline const void* rows(const Tensor& t) { return t.const_data_ptr(); }
inline void* rows_out(const Tensor& t) { return t.mutable_data_ptr(); }
inline const Number* numbers(const Tensor& t) { return static_cast<const Number*>(t.const_data_ptr()); }
inline Number* numbers_out(const Tensor& t) { return static_cast<Number*>(t.mutable_data_ptr()); }

// x [*, N, D]
inline Rows rows_of(const Check& check, const Tensor& x) {
  const int64_t problems = check.problems("x", x, 2);
  const Rows shape{problems, x.size(-2), x.size(-1)};
  check.require(shape.rows > 0 && shape.width > 0, "x has no rows or no channels; expected one at least");
  check.rows("x", x, {shape.problems, shape.rows, shape.width});
  return shape;
}

// text [A, D], frames [B, F, D], frame_mask [B, F]
inline Pool pool_of(const Check& check, const Tensor& text, const Tensor& frames, const Tensor& frame_mask,
                    double pooling_temperature) {
  check.require(text.dim() == 2, "text has ", text.dim(), " dimensions; expected [A, D]");
  check.require(frames.dim() == 3, "frames has ", frames.dim(), " dimensions; expected [B, F, D]");
  const Pool pool{text.size(0), frames.size(0), frames.size(1), text.size(1), pooling_temperature};
  check.require(pool.texts > 0 && pool.videos > 0 && pool.frames > 0 && pool.width > 0,
                "text or frames is empty; expected one text, video, frame and channel at least");

  check.rows("text", text, {pool.texts, pool.width});
  check.rows("frames", frames, {pool.videos, pool.frames, pool.width});
  check.numbers("frame_mask", frame_mask, {pool.videos, pool.frames});
  return pool;
}

// responsibilities [D, K], scale [K]; none without bases
inline Map map_of(const Check& check, const Pool& pool, const Tensor& responsibilities, const Tensor& scale,
                  double weight) {
  const int64_t num_bases = scale.numel();
  check.numbers("responsibilities", responsibilities, {pool.width, num_bases});
  check.numbers("scale", scale, {num_bases});
  return {numbers(responsibilities), numbers(scale), num_bases, weight};
}

inline void check_settings(const Check& check, const Settings& settings) {
  check.require(settings.num_iters > 0, "num_iters is ", settings.num_iters, "; expected one iteration at least");
}

}  // namespace emcl
