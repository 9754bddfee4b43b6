// Loaded before everything else: memory that is refused when it is asked for, as a test says. It counts the allocations
// of one library, or of all, and lets the n-th fail, alone or with all that follow.
#include <errno.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);
}

namespace {

std::atomic<bool> armed{false};
std::atomic<int64_t> counted{0}, refused{0};
int64_t nth = 0;
size_t least = 0;
bool ours_alone = false, all_that_follow = false;
uintptr_t first = 0, last = 0;  // the code of the library

// The aligned blocks that the library has: an open hash table. Its memory is whole cache lines.
constexpr size_t kSlots = 1 << 16, kLine = 64;
void* slots[kSlots];
void* const kGone = &slots;
int64_t living = 0;
std::atomic_flag table_in_use = ATOMIC_FLAG_INIT;

class Locked {
 public:
  Locked() {
    while (table_in_use.test_and_set(std::memory_order_acquire)) {
    }
  }
  ~Locked() { table_in_use.clear(std::memory_order_release); }
};

size_t slot_of(const void* memory) { return reinterpret_cast<uintptr_t>(memory) / kLine * 0x9e3779b97f4a7c15u >> 48; }

void enter(void* memory) {
  const Locked locked;
  size_t i = slot_of(memory);
  while (slots[i] != nullptr && slots[i] != kGone) i = (i + 1) % kSlots;
  slots[i] = memory;
  ++living;
}

void leave(void* memory) {
  if (first == 0 || reinterpret_cast<uintptr_t>(memory) % kLine != 0) return;
  const Locked locked;
  for (size_t i = slot_of(memory); slots[i] != nullptr; i = (i + 1) % kSlots) {
    if (slots[i] != memory) continue;
    slots[i] = slots[(i + 1) % kSlots] == nullptr ? nullptr : kGone;
    --living;
    return;
  }
}

bool is_ours(const void* caller) {
  const auto address = reinterpret_cast<uintptr_t>(caller);
  return address >= first && address < last;
}

bool refuse(size_t size, const void* caller) {
  if (!armed.load(std::memory_order_relaxed) || size < least || (ours_alone && !is_ours(caller))) return false;
  const int64_t number = ++counted;
  if (number != nth && !(all_that_follow && number > nth)) return false;
  ++refused;
  return true;
}

void* aligned(size_t alignment, size_t size, const void* caller) {
  if (refuse(size, caller)) return nullptr;
  void* memory = __libc_memalign(alignment, size);
  if (memory != nullptr && is_ours(caller)) enter(memory);
  return memory;
}

void* made(size_t size, const void* caller, size_t alignment = 0) {
  void* memory = refuse(size, caller) ? nullptr : alignment ? __libc_memalign(alignment, size) : __libc_malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

#define CALLER __builtin_return_address(0)

extern "C" {

// The code of the library whose allocations are "ours".
void faults_watch(uintptr_t begin, uintptr_t end) {
  first = begin;
  last = end;
}

// From now on the n-th allocation of `at_least` bytes or more is refused.
void faults_refuse(int64_t n, size_t at_least, int ours, int following) {
  nth = n;
  least = at_least;
  ours_alone = ours;
  all_that_follow = following;
  counted = 0;
  refused = 0;
  armed = true;
}

// Ends that; how many were refused.
int64_t faults_stop() {
  armed = false;
  return refused;
}

// Blocks of aligned memory that the library has and did not give back.
int64_t faults_living() {
  const Locked locked;
  return living;
}

void* malloc(size_t size) {
  if (!refuse(size, CALLER)) return __libc_malloc(size);
  errno = ENOMEM;
  return nullptr;
}
void* calloc(size_t count, size_t size) {
  if (!refuse(count * size, CALLER)) return __libc_calloc(count, size);
  errno = ENOMEM;
  return nullptr;
}
void* realloc(void* memory, size_t size) {
  if (!refuse(size, CALLER)) return __libc_realloc(memory, size);
  errno = ENOMEM;
  return nullptr;
}
void* aligned_alloc(size_t alignment, size_t size) {
  void* memory = aligned(alignment, size, CALLER);
  if (memory == nullptr) errno = ENOMEM;
  return memory;
}
void* memalign(size_t alignment, size_t size) { return aligned(alignment, size, CALLER); }
int posix_memalign(void** memory, size_t alignment, size_t size) {
  void* found = aligned(alignment, size, CALLER);
  if (found == nullptr) return ENOMEM;
  *memory = found;
  return 0;
}
void free(void* memory) {
  if (memory != nullptr) leave(memory);
  __libc_free(memory);
}
}

void* operator new(size_t size) { return made(size, CALLER); }
void* operator new[](size_t size) { return made(size, CALLER); }
void* operator new(size_t size, std::align_val_t alignment) { return made(size, CALLER, size_t(alignment)); }
void* operator new[](size_t size, std::align_val_t alignment) { return made(size, CALLER, size_t(alignment)); }
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return refuse(size, CALLER) ? nullptr : __libc_malloc(size);
}
void* operator new[](size_t size, const std::nothrow_t&) noexcept {
  return refuse(size, CALLER) ? nullptr : __libc_malloc(size);
}
