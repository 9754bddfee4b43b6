// Loops on the threads of torch.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <exception>

namespace emcl {

// f(begin, end) over [0, count), by one or several threads, in chunks of at least `grain`.
//
// What f throws, such as std::bad_alloc, is thrown again here. It may leave neither the region of the threads, where it
// would end the process, nor torch's C interface, which would make another exception of it. Of several, one is thrown.
template <class F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  if (count <= grain) return f(int64_t(0), count);

  std::exception_ptr failure;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (...) {
      if (!failed.test_and_set()) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

// f(i) for each of `count` independent problems.
template <class F>
void for_each_problem(int64_t count, const F& f) {
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

}  // namespace emcl
