// How a kernel of the CPU reaches the threads of the process. Free of torch, so that only this project's code is
// compiled with an instruction set's flags.
#pragma once

#include <cstdint>

namespace emcl {

// body(context, begin, end) over [0, count), by one or several threads, in chunks of at least `grain`.
using Body = void (*)(void* context, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t count, int64_t grain, Body body, void* context);

struct Call {
  ParallelFor parallel_for;
  int64_t threads;  // that it may use
};

}  // namespace emcl
