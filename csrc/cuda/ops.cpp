// Registers the kernels with torch through its stable C ABI, so that one build serves torch 2.10 and later, and needs
// no CUDA torch. The schemas are defined in emcl_kernels/backends/compiled.py; outputs are allocated there and filled
// here. Compiled with EMCL_EMULATED, the same functions take CPU tensors and run in the emulator.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

#if defined(EMCL_EMULATED)
#define EMCL_NAMESPACE emcl_emulated
#define EMCL_KEY CPU
#else
#define EMCL_NAMESPACE emcl_native
#define EMCL_KEY CUDA
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#if defined(EMCL_EMULATED)
struct DeviceGuard {
  explicit DeviceGuard(int) {}
};
emcl::Stream current_stream(int) { return nullptr; }
#else
using torch::stable::accelerator::DeviceGuard;
emcl::Stream current_stream(int device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<emcl::Stream>(stream);
}
#endif

// One call of an op: on the device of its tensors, on the current stream, with memory of torch's allocator. That memory
// goes back when the op returns and not when its work is done; the allocator gives it to later work of the stream only.
class Scope {
 public:
  explicit Scope(const Tensor& tensor) : like_(tensor), guard_(tensor.get_device_index()) {
    call_.stream = current_stream(tensor.get_device_index());
    call_.device = emcl::describe_device(tensor.get_device_index());
    call_.workspace = [this](size_t bytes) {
      buffers_.push_back(torch::stable::new_empty(like_, {int64_t(bytes + kAligned)}, ScalarType::Byte));
      const auto start = reinterpret_cast<uintptr_t>(buffers_.back().mutable_data_ptr());
      return reinterpret_cast<void*>((start + kAligned - 1) / kAligned * kAligned);
    };
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  const emcl::Call& call() const { return call_; }

 private:
  static constexpr uintptr_t kAligned = 256;
  Tensor like_;
  DeviceGuard guard_;
  std::vector<Tensor> buffers_;
  emcl::Call call_{};
};

emcl::Element element(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return emcl::Element::float32;
    case ScalarType::BFloat16:
      return emcl::Element::bfloat16;
    case ScalarType::Half:
      return emcl::Element::float16;
    default:
      throw std::invalid_argument("emcl: the CUDA kernels take float32, bfloat16 and float16 rows");
  }
}
void* rows(const Tensor& t) { return t.mutable_data_ptr(); }
float* floats(const Tensor& t) {
  if (t.scalar_type() != ScalarType::Float)
    throw std::invalid_argument("emcl: expected a float32 tensor beside the rows");
  return static_cast<float*>(t.mutable_data_ptr());
}
float* floats_or_null(const Tensor& t) { return t.numel() == 0 ? nullptr : floats(t); }
emcl::Rows shape_of(const Tensor& x) { return {x.size(0), x.size(1), x.size(2)}; }
emcl::Pool pool_of(const Tensor& text, const Tensor& frames, double temperature) {
  return {text.size(0), frames.size(0), frames.size(1), text.size(1), temperature};
}
emcl::Map map_of(const Tensor& responsibilities, const Tensor& scale, double weight) {
  return {floats_or_null(responsibilities), floats_or_null(scale), scale.size(0), weight};
}

// x [P, N, D], gram [P, D, D], colsum [P, D]
void moments(const Tensor& x, const Tensor& gram, const Tensor& colsum) {
  if (x.size(0) == 0) return;
  const Scope scope(x);
  emcl::moments(scope.call(), element(x), rows(x), shape_of(x), floats(gram), floats(colsum));
}

void moments_backward(const Tensor& x, const Tensor& d_gram, const Tensor& d_colsum, const Tensor& d_x) {
  if (x.size(0) == 0) return;
  const Scope scope(x);
  emcl::moments_backward(scope.call(), element(x), rows(x), floats(d_gram), floats(d_colsum), shape_of(x), rows(d_x));
}

// gram [P, D, D], logits and responsibilities [P, D, K], scale [P, K]
void fit(const Tensor& gram, const Tensor& logits, int64_t iters, double temperature, double eps,
         const Tensor& responsibilities, const Tensor& scale) {
  if (logits.size(0) == 0) return;
  const Scope scope(gram);
  emcl::fit(scope.call(), floats(gram), floats(logits), logits.size(0), logits.size(1), logits.size(2),
            {iters, temperature, eps}, floats(responsibilities), floats(scale));
}

void fit_backward(const Tensor& gram, const Tensor& logits, const Tensor& d_responsibilities, const Tensor& d_scale,
                  int64_t iters, double temperature, double eps, const Tensor& d_gram, const Tensor& d_logits) {
  if (logits.size(0) == 0) return;
  const Scope scope(gram);
  emcl::fit_backward(scope.call(), floats(gram), floats(logits), floats(d_responsibilities), floats(d_scale),
                     logits.size(0), logits.size(1), logits.size(2), {iters, temperature, eps}, floats(d_gram),
                     floats(d_logits));
}

// x and y [P, N, D], responsibilities [P, D, K], scale [P, K]
void reconstruct(const Tensor& x, const Tensor& responsibilities, const Tensor& scale, double weight, const Tensor& y) {
  if (x.size(0) == 0) return;
  const Scope scope(x);
  emcl::reconstruct(scope.call(), element(x), rows(x), floats(responsibilities), floats(scale), shape_of(x),
                    scale.size(1), weight, rows(y));
}

void reconstruct_backward(const Tensor& d_y, const Tensor& x, const Tensor& responsibilities, const Tensor& scale,
                          double weight, const Tensor& d_x, const Tensor& d_responsibilities, const Tensor& d_scale) {
  if (x.size(0) == 0) return;
  const Scope scope(x);
  emcl::reconstruct_backward(scope.call(), element(x), rows(d_y), rows(x), floats(responsibilities), floats(scale),
                             shape_of(x), scale.size(1), weight, rows(d_x), floats(d_responsibilities),
                             floats(d_scale));
}

// init [P, K], or [P, N, K]; form: "auto" or "gram"
void project(const Tensor& x, const Tensor& init, int64_t iters, double temperature, double weight, double eps,
             std::string form, const Tensor& y, const Tensor& mean_bases, const Tensor& responsibilities,
             const Tensor& scale) {
  if (form == "loop") throw std::invalid_argument("emcl: form is loop; the CUDA kernels have the Gram form only");
  if (x.size(0) == 0) return;
  const Scope scope(x);
  emcl::project(scope.call(), element(x), rows(x), floats(init), init.dim() == 3, shape_of(x),
                init.size(init.dim() - 1), {iters, temperature, eps}, weight, rows(y), floats(mean_bases),
                floats(responsibilities), floats(scale));
}

// text [A, D], frames [B, F, D], mask [B, F], kept [B, F, A] or empty
void pooled_moments(const Tensor& text, const Tensor& frames, const Tensor& mask, double pooling_temperature,
                    const Tensor& gram, const Tensor& colsum, const Tensor& kept) {
  const Scope scope(text);
  emcl::pooled_moments(scope.call(), element(text), pool_of(text, frames, pooling_temperature), rows(text),
                       rows(frames), floats(mask), floats(gram), floats(colsum), floats_or_null(kept));
}

void pooled_moments_backward(const Tensor& d_gram, const Tensor& d_colsum, const Tensor& text, const Tensor& frames,
                             const Tensor& mask, const Tensor& kept, double pooling_temperature, const Tensor& d_text,
                             const Tensor& d_frames) {
  const Scope scope(text);
  emcl::pooled_moments_backward(scope.call(), element(text), pool_of(text, frames, pooling_temperature), rows(text),
                                rows(frames), floats(mask), floats_or_null(kept), floats(d_gram), floats(d_colsum),
                                rows(d_text), rows(d_frames));
}

void pooled_cosine(const Tensor& text, const Tensor& frames, const Tensor& mask, const Tensor& kept,
                   const Tensor& responsibilities, const Tensor& scale, double weight, double pooling_temperature,
                   const Tensor& cosine, const Tensor& length) {
  const Scope scope(text);
  emcl::pooled_cosine(scope.call(), element(text), pool_of(text, frames, pooling_temperature),
                      map_of(responsibilities, scale, weight), rows(text), rows(frames), floats(mask),
                      floats_or_null(kept), floats(cosine), floats(length));
}

// pull_text [A, K], pull_frames [B, F, K]
void pooled_cosine_backward(const Tensor& d_cosine, const Tensor& cosine, const Tensor& length, const Tensor& text,
                            const Tensor& frames, const Tensor& mask, const Tensor& kept,
                            const Tensor& responsibilities, const Tensor& scale, double weight,
                            double pooling_temperature, bool linear, const Tensor& d_text, const Tensor& d_frames,
                            const Tensor& pull_text, const Tensor& pull_frames) {
  const Scope scope(text);
  emcl::pooled_cosine_backward(scope.call(), element(text), pool_of(text, frames, pooling_temperature),
                               map_of(responsibilities, scale, weight), linear, floats(d_cosine), floats(cosine),
                               floats(length), rows(text), rows(frames), floats(mask), floats_or_null(kept),
                               rows(d_text), rows(d_frames), floats_or_null(pull_text), floats_or_null(pull_frames));
}

// Every block of `em_block` texts and videos is a problem of its own; init [K], cosine [A, B]
void pooled_blocks(const Tensor& text, const Tensor& frames, const Tensor& mask, const Tensor& init, int64_t em_block,
                   double pooling_temperature, int64_t iters, double temperature, double weight, double eps,
                   bool relative, const Tensor& cosine) {
  const Scope scope(text);
  emcl::pooled_blocks(scope.call(), element(text), pool_of(text, frames, pooling_temperature),
                      {iters, temperature, eps}, em_block, rows(text), rows(frames), floats(mask), floats(init),
                      init.numel(), weight, relative, floats(cosine));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(EMCL_NAMESPACE, EMCL_KEY, m) {
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

#if !defined(EMCL_EMULATED)
#define EMCL_EXPORT extern "C" __attribute__((visibility("default")))
// Such as "80 90 90+PTX".
EMCL_EXPORT const char* emcl_cuda_architectures() { return EMCL_CUDA_ARCHITECTURES; }
// 1000·major + 10·minor, as CUDA counts: the version that the library was built with, and the latest that the driver
// knows (0: there is no driver).
EMCL_EXPORT int emcl_cuda_runtime() { return CUDART_VERSION; }
EMCL_EXPORT int emcl_cuda_driver() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}
#endif
