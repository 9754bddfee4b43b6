// One call of an op: on the device of its tensors, on the current stream, with memory of torch's allocator. That memory
// goes back when the op returns and not when its work is done; the allocator gives it to later work of the stream only.
// In the emulator, tensors are on the CPU and there is no stream.
#pragma once

#include <emcl/op.h>
#include <torch/csrc/stable/accelerator.h>

#include <vector>

#include "cuda/call.h"

namespace emcl {

#if defined(EMCL_EMULATED)
struct DeviceGuard {
  explicit DeviceGuard(int) {}
};
#else
using torch::stable::accelerator::DeviceGuard;
#endif

class Scope {
 public:
  explicit Scope(const Tensor& tensor);  // in library.cpp
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  const Call& call() const { return call_; }

 private:
  Tensor like_;
  DeviceGuard guard_;
  std::vector<Tensor> buffers_;
  Call call_{};
};

}  // namespace emcl
