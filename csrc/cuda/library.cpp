// What a library of the CUDA kernels has besides them and the ops: its table of kernels, how a call reaches the device,
// and what it says of itself. Compiled with EMCL_EMULATED, it takes CPU tensors and runs in the emulator.
#include <cstdint>

#include "cuda/scope.h"
#include "cuda/tile/device.cuh"
#include "kernels.h"

namespace emcl {

// The kernels take the number type of the rows as an argument.
const Kernels& kernels(Element) {
#define EMCL_ADDRESS(name) &name,
  static constexpr Kernels all{EMCL_FOR_EACH_KERNEL(EMCL_ADDRESS)};
#undef EMCL_ADDRESS
  return all;
}

static Stream current_stream([[maybe_unused]] int device) {
#if defined(EMCL_EMULATED)
  return nullptr;
#else
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<Stream>(stream);
#endif
}

Scope::Scope(const Tensor& tensor) : like_(tensor), guard_(tensor.get_device_index()) {
  constexpr uintptr_t kAligned = 256;
  call_.stream = current_stream(tensor.get_device_index());
  call_.device = describe_device(tensor.get_device_index());
  call_.workspace = [this](size_t bytes) {
    buffers_.push_back(torch::stable::new_empty(like_, {int64_t(bytes + kAligned)}, ScalarType::Byte));
    const auto start = reinterpret_cast<uintptr_t>(buffers_.back().mutable_data_ptr());
    return reinterpret_cast<void*>((start + kAligned - 1) / kAligned * kAligned);
  };
}

}  // namespace emcl

#if !defined(EMCL_EMULATED)
#define EMCL_EXPORT extern "C" __attribute__((visibility("default")))
// Such as "80 90 90+PTX".
EMCL_EXPORT const char* emcl_cuda_architectures() { return EMCL_CUDA_ARCHITECTURES; }
// Bytes of shared memory that a device must allow a block to have.
EMCL_EXPORT int emcl_cuda_shared_memory() { return int(emcl::kNeededShared); }
// 1000·major + 10·minor, as CUDA counts: the version that the library was built with, and the latest that the driver
// knows (0: there is no driver).
EMCL_EXPORT int emcl_cuda_runtime() { return CUDART_VERSION; }
EMCL_EXPORT int emcl_cuda_driver() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}
#endif
