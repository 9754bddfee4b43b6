// Registers the kernels with torch through its stable C ABI, so that one build serves torch 2.10 and later.
// The schemas are defined in emcl_kernels/backends/native.py; outputs are allocated there and filled here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "../plan.h"
#include "kernels.h"

namespace {

using emcl::Kernels;
using torch::stable::Tensor;

struct Isa {
  const char* name;
  const Kernels* table;
};

// The widest instruction set that this machine has; EMCL_ISA=baseline|avx2|avx512 narrows it, for tests.
Isa select() {
  const char* wanted = std::getenv("EMCL_ISA");
  [[maybe_unused]] const std::string limit = wanted == nullptr ? "" : wanted;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (avx512 && (limit.empty() || limit == "avx512")) return {"avx512", emcl::kAvx512};
  if (avx2 && limit != "baseline") return {"avx2", emcl::kAvx2};
#endif
  return {"baseline", emcl::kBaseline};
}
const Isa& isa() {
  static const Isa selected = select();
  return selected;
}

const Kernels& kernels(const Tensor& x) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return isa().table[emcl::kFloat64];
    case ScalarType::BFloat16:
      return isa().table[emcl::kBFloat16];
    case ScalarType::Half:
      return isa().table[emcl::kFloat16];
    default:
      return isa().table[emcl::kFloat32];
  }
}

void parallel_for(int64_t count, int64_t grain, emcl::Body body, void* context) {
  if (count <= grain) return body(context, 0, count);
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}
void one_thread(int64_t count, int64_t, emcl::Body body, void* context) { body(context, 0, count); }

// One problem of a batch: where its part of each tensor starts.
char* at(const Tensor& t, int64_t problem, int64_t problems) {
  return static_cast<char*>(t.mutable_data_ptr()) + problem * (t.numel() / problems) * int64_t(t.element_size());
}

// Many problems run one a thread; few run one after the other, each on all threads. The bits are the same.
template <class F>
void for_each_problem(int64_t problems, const F& f) {
  if (problems >= int64_t(torch::stable::get_num_threads()) && problems > 1) {
    torch::stable::parallel_for(0, problems, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i, one_thread);
    });
  } else {
    for (int64_t i = 0; i < problems; ++i) f(i, parallel_for);
  }
}

// x [G, N, D], gram [G, D, D], colsum [G, D]
void moments(const Tensor& x, const Tensor& gram, const Tensor& colsum) {
  const int64_t g = x.size(0);
  for_each_problem(g, [&](int64_t i, emcl::ParallelFor run) {
    kernels(x).moments(run, at(x, i, g), x.size(1), x.size(2), at(gram, i, g), at(colsum, i, g));
  });
}

void moments_backward(const Tensor& x, const Tensor& d_gram, const Tensor& d_colsum, const Tensor& d_x) {
  const int64_t g = x.size(0);
  for_each_problem(g, [&](int64_t i, emcl::ParallelFor run) {
    kernels(x).moments_backward(run, at(x, i, g), at(d_gram, i, g), at(d_colsum, i, g), x.size(1), x.size(2),
                                at(d_x, i, g));
  });
}

// gram [G, D, D], logits and responsibilities [G, D, K], scale [G, K]
void fit(const Tensor& gram, const Tensor& logits, int64_t iters, double temperature, double eps,
         const Tensor& responsibilities, const Tensor& scale) {
  const int64_t g = logits.size(0);
  for_each_problem(g, [&](int64_t i, emcl::ParallelFor run) {
    kernels(gram).fit(run, at(gram, i, g), at(logits, i, g), logits.size(1), logits.size(2), {iters, temperature, eps},
                      at(responsibilities, i, g), at(scale, i, g));
  });
}

void fit_backward(const Tensor& gram, const Tensor& logits, const Tensor& d_responsibilities, const Tensor& d_scale,
                  int64_t iters, double temperature, double eps, const Tensor& d_gram, const Tensor& d_logits) {
  const int64_t g = logits.size(0);
  for_each_problem(g, [&](int64_t i, emcl::ParallelFor run) {
    kernels(gram).fit_backward(run, at(gram, i, g), at(logits, i, g), at(d_responsibilities, i, g), at(d_scale, i, g),
                               logits.size(1), logits.size(2), {iters, temperature, eps}, at(d_gram, i, g),
                               at(d_logits, i, g));
  });
}

// x and y [G, N, D], responsibilities [G, D, K], scale [G, K]
void reconstruct(const Tensor& x, const Tensor& responsibilities, const Tensor& scale, double weight, const Tensor& y) {
  const int64_t g = x.size(0);
  for_each_problem(g, [&](int64_t i, emcl::ParallelFor run) {
    kernels(x).reconstruct(run, at(x, i, g), at(responsibilities, i, g), at(scale, i, g), x.size(1), x.size(2),
                           scale.size(1), weight, at(y, i, g));
  });
}

void reconstruct_backward(const Tensor& d_y, const Tensor& x, const Tensor& responsibilities, const Tensor& scale,
                          double weight, const Tensor& d_x, const Tensor& d_responsibilities, const Tensor& d_scale) {
  const int64_t g = x.size(0);
  for_each_problem(g, [&](int64_t i, emcl::ParallelFor run) {
    kernels(x).reconstruct_backward(run, at(d_y, i, g), at(x, i, g), at(responsibilities, i, g), at(scale, i, g),
                                    x.size(1), x.size(2), scale.size(1), weight, at(d_x, i, g),
                                    at(d_responsibilities, i, g), at(d_scale, i, g));
  });
}

// init [G, K], or [G, N, K]; form: "auto", "gram" or "loop"
void project(const Tensor& x, const Tensor& init, int64_t iters, double temperature, double weight, double eps,
             std::string form, const Tensor& y, const Tensor& mean_bases, const Tensor& responsibilities,
             const Tensor& scale) {
  const int64_t g = x.size(0), rows = x.size(1), width = x.size(2), bases = scale.size(scale.dim() - 1);
  const bool loop =
      form == "loop" ||
      (form == "auto" && emcl::plan(rows, width, bases, iters, int64_t(x.element_size())).form == emcl::Form::loop);
  for_each_problem(g, [&](int64_t i, emcl::ParallelFor run) {
    kernels(x).project(run, at(x, i, g), at(init, i, g), init.dim() == 3, loop, rows, width, bases,
                       {iters, temperature, eps}, weight, at(y, i, g), at(mean_bases, i, g), at(responsibilities, i, g),
                       at(scale, i, g));
  });
}

void* or_null(const Tensor& t) { return t.numel() == 0 ? nullptr : t.mutable_data_ptr(); }
emcl::Pool pool_of(const Tensor& text, const Tensor& frames, double temperature) {
  return {text.size(0), frames.size(0), frames.size(1), text.size(1), temperature};
}
emcl::Map map_of(const Tensor& responsibilities, const Tensor& scale, double weight) {
  return {responsibilities.mutable_data_ptr(), scale.mutable_data_ptr(), scale.size(0), weight};
}

// text [A, D], frames [B, F, D], mask [B, F], kept [B, F, A] or empty
void pooled_moments(const Tensor& text, const Tensor& frames, const Tensor& mask, double pooling_temperature,
                    const Tensor& gram, const Tensor& colsum, const Tensor& kept) {
  kernels(text).pooled_moments(parallel_for, pool_of(text, frames, pooling_temperature), text.mutable_data_ptr(),
                               frames.mutable_data_ptr(), mask.mutable_data_ptr(), gram.mutable_data_ptr(),
                               colsum.mutable_data_ptr(), or_null(kept));
}

void pooled_moments_backward(const Tensor& d_gram, const Tensor& d_colsum, const Tensor& text, const Tensor& frames,
                             const Tensor& mask, const Tensor& kept, double pooling_temperature, const Tensor& d_text,
                             const Tensor& d_frames) {
  kernels(text).pooled_moments_backward(parallel_for, pool_of(text, frames, pooling_temperature),
                                        text.mutable_data_ptr(), frames.mutable_data_ptr(), mask.mutable_data_ptr(),
                                        or_null(kept), d_gram.mutable_data_ptr(), d_colsum.mutable_data_ptr(),
                                        d_text.mutable_data_ptr(), d_frames.mutable_data_ptr());
}

void pooled_cosine(const Tensor& text, const Tensor& frames, const Tensor& mask, const Tensor& kept,
                   const Tensor& responsibilities, const Tensor& scale, double weight, double pooling_temperature,
                   const Tensor& cosine, const Tensor& length) {
  kernels(text).pooled_cosine(parallel_for, pool_of(text, frames, pooling_temperature),
                              map_of(responsibilities, scale, weight), text.mutable_data_ptr(),
                              frames.mutable_data_ptr(), mask.mutable_data_ptr(), or_null(kept),
                              cosine.mutable_data_ptr(), length.mutable_data_ptr());
}

// pull_text [A, K], pull_frames [B, F, K]
void pooled_cosine_backward(const Tensor& d_cosine, const Tensor& cosine, const Tensor& length, const Tensor& text,
                            const Tensor& frames, const Tensor& mask, const Tensor& kept,
                            const Tensor& responsibilities, const Tensor& scale, double weight,
                            double pooling_temperature, bool linear, const Tensor& d_text, const Tensor& d_frames,
                            const Tensor& pull_text, const Tensor& pull_frames) {
  kernels(text).pooled_cosine_backward(
      parallel_for, pool_of(text, frames, pooling_temperature), map_of(responsibilities, scale, weight), linear,
      d_cosine.mutable_data_ptr(), cosine.mutable_data_ptr(), length.mutable_data_ptr(), text.mutable_data_ptr(),
      frames.mutable_data_ptr(), mask.mutable_data_ptr(), or_null(kept), d_text.mutable_data_ptr(),
      d_frames.mutable_data_ptr(), pull_text.mutable_data_ptr(), pull_frames.mutable_data_ptr());
}

// Every block of `em_block` texts and videos is a problem of its own; init [K], cosine [A, B]
void pooled_blocks(const Tensor& text, const Tensor& frames, const Tensor& mask, const Tensor& init, int64_t em_block,
                   double pooling_temperature, int64_t iters, double temperature, double weight, double eps,
                   bool relative, const Tensor& cosine) {
  const emcl::Pool all = pool_of(text, frames, pooling_temperature);
  const int64_t across = (all.videos + em_block - 1) / em_block, down = (all.texts + em_block - 1) / em_block;
  const auto row = [](const Tensor& t, int64_t i) {
    return static_cast<char*>(t.mutable_data_ptr()) + i * (t.numel() / t.size(0)) * int64_t(t.element_size());
  };
  for_each_problem(across * down, [&](int64_t block, emcl::ParallelFor run) {
    const int64_t text_at = block / across * em_block, video_at = block % across * em_block;
    emcl::Pool part = all;
    part.texts = std::min(em_block, all.texts - text_at);
    part.videos = std::min(em_block, all.videos - video_at);
    kernels(text).pooled_block(run, part, {iters, temperature, eps}, row(text, text_at), row(frames, video_at),
                               row(mask, video_at), init.mutable_data_ptr(), init.numel(), weight, relative,
                               row(cosine, text_at) + video_at * int64_t(cosine.element_size()), all.videos);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(emcl_native, CPU, m) {
  m.impl("moments", TORCH_BOX(&moments));
  m.impl("moments_backward", TORCH_BOX(&moments_backward));
  m.impl("fit", TORCH_BOX(&fit));
  m.impl("fit_backward", TORCH_BOX(&fit_backward));
  m.impl("reconstruct", TORCH_BOX(&reconstruct));
  m.impl("reconstruct_backward", TORCH_BOX(&reconstruct_backward));
  m.impl("project", TORCH_BOX(&project));
  m.impl("pooled_moments", TORCH_BOX(&pooled_moments));
  m.impl("pooled_moments_backward", TORCH_BOX(&pooled_moments_backward));
  m.impl("pooled_cosine", TORCH_BOX(&pooled_cosine));
  m.impl("pooled_cosine_backward", TORCH_BOX(&pooled_cosine_backward));
  m.impl("pooled_blocks", TORCH_BOX(&pooled_blocks));
}

extern "C" __attribute__((visibility("default"))) const char* emcl_isa() { return isa().name; }
