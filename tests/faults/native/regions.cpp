// Loaded before everything else, for the thread sanitizer: it does not see how OpenMP's threads wait for each other, so
// a loop of torch tells it. What was written before the loop is seen inside it, and what is written inside, after it.
// Nothing orders the parts of one loop: these are what it is to look at.
#include <dlfcn.h>

#include <cstdint>

extern "C" {

void __tsan_acquire(void* address);
void __tsan_release(void* address);

using Body = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);

struct Loop {
  Body body;
  void* context;
  char before, after;
};

static void in_loop(int64_t begin, int64_t end, void* context) {
  auto& loop = *static_cast<Loop*>(context);
  __tsan_acquire(&loop.before);
  loop.body(begin, end, loop.context);
  __tsan_release(&loop.after);
}

int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain, Body body, void* context) {
  static const auto real =
      reinterpret_cast<ParallelFor>(dlsym(dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD), "torch_parallel_for"));
  Loop loop{body, context, 0, 0};
  __tsan_release(&loop.before);
  const int32_t error = real(begin, end, grain, in_loop, &loop);
  __tsan_acquire(&loop.after);
  return error;
}
}
