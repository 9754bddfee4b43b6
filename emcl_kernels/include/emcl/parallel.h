// Loops on the threads of torch.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace emcl {

// f(begin, end) over [0, count), by one or several threads, in chunks of at least `grain`.
template <class F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  if (count <= grain) return f(int64_t(0), count);
  torch::stable::parallel_for(0, count, grain, f);
}

// f(i) for each of `count` independent problems.
template <class F>
void for_each_problem(int64_t count, const F& f) {
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

}  // namespace emcl
