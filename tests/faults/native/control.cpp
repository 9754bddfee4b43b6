// What each sanitizer must see, so that "nothing was found" means something: compiled as the kernels are, and called in
// the same way. Each function does one thing that is wrong.
#include <dlfcn.h>

#include <climits>
#include <cstdint>
#include <cstdlib>

namespace {

volatile int64_t shared_by_all = 0;

void add_up(int64_t, int64_t, void*) {
  for (int i = 0; i < 100000; ++i) shared_by_all = shared_by_all + 1;
}

// Writes into a part of its own, and reads what was written before the loop.
void in_turn(int64_t begin, int64_t end, void* context) {
  auto* numbers = static_cast<int64_t*>(context);
  for (int64_t i = begin; i < end; ++i) numbers[i + 1] = numbers[0] + i;
}

using ParallelFor = int32_t (*)(int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*);

void loop(int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
  const auto run = reinterpret_cast<ParallelFor>(dlsym(RTLD_DEFAULT, "torch_parallel_for"));
  if (run != nullptr) run(0, count, 1, body, context);
}

}  // namespace

#define CONTROL extern "C" __attribute__((visibility("default")))

// For the address sanitizer.
CONTROL int beyond(int size) {
  volatile char* memory = static_cast<char*>(std::malloc(size_t(size)));
  memory[size] = 1;
  return memory[size];
}

// For the one of undefined behaviour.
CONTROL int too_large(int one) { return INT_MAX + one; }

// For the thread sanitizer: a loop of torch whose parts write to the same place.
CONTROL int race(int) {
  loop(2, add_up, nullptr);
  return 0;
}

// And nothing wrong: parts of a loop, before and after each other, through the same memory.
CONTROL int no_fault(int count) {
  auto* numbers = static_cast<int64_t*>(std::calloc(size_t(count) + 1, sizeof(int64_t)));
  for (int turn = 0; turn < 20; ++turn) {
    loop(count, in_turn, numbers);
    numbers[0] = numbers[count] % 7;
  }
  const int64_t last = numbers[count];
  std::free(numbers);
  return int(last % 2 * 0);
}
