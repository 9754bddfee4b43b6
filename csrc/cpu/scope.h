// One call of an op on the CPU: the kernels run on the threads of torch.
#pragma once

#include <emcl/op.h>

#include "cpu/call.h"

namespace emcl {

class Scope {
 public:
  explicit Scope(const Tensor&) : call_{on_threads, int64_t(torch::stable::get_num_threads())} {}
  const Call& call() const { return call_; }

 private:
  static void on_threads(int64_t count, int64_t grain, Body body, void* context) {
    parallel_for(count, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
  }
  Call call_;
};

}  // namespace emcl
