// Fibers, their barriers, and what a warp does together.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cctype>
#include <climits>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "cuda/emulator/device.h"

namespace emcl {
namespace emulator {

Dim thread, block, blocks, threads;
char* shared;
unsigned rank;

namespace {

constexpr size_t kStack = 128 * 1024;
constexpr size_t kGuard = 256;  // bytes of known content around shared memory

struct Fiber;

// Fibers that wait for each other.
struct Meeting {
  unsigned members = 0;
  std::vector<Fiber*> waiting;
};

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Block {
  Dim index;
  unsigned rank;
  std::vector<char> memory;
  char* shared;
  Meeting barrier;
};

struct Fiber {
  ucontext_t start;
  jmp_buf state;
  bool started = false, done = false;
  std::unique_ptr<char[]> stack;
  Dim thread;
  Block* block;
  unsigned lane;
  Meeting* warp;
  void (*operation)(void* const*) = nullptr;
  void* given = nullptr;
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
};

jmp_buf scheduler;
Fiber* here;
Meeting cluster;
std::vector<Fiber*> ready;
std::vector<std::unique_ptr<Block>>* cluster_blocks;
const std::function<void()>* body;
std::string failure;

// Fibers and all of the above are those of one launch: a thread that launches waits for the one before.
std::mutex in_use;

// What was set for a kernel. On a device too, it lasts as long as the process.
struct Attributes {
  size_t shared = kUsualShared;
  unsigned cluster = kUsualCluster;
};
std::map<const void*, Attributes> attributes;
std::mutex attributes_in_use;
int64_t attributes_set = 0;

Attributes attributes_of(const void* code) {
  const std::lock_guard lock(attributes_in_use);
  const auto found = attributes.find(code);
  return found == attributes.end() ? Attributes{} : found->second;
}

void pause() {
  Fiber* self = here;
  if (_setjmp(self->state) == 0) _longjmp(scheduler, 1);
}

// The last to come wakes the others.
void meet(Meeting& meeting) {
  meeting.waiting.push_back(here);
  if (meeting.waiting.size() == meeting.members) {
    ready.insert(ready.end(), meeting.waiting.begin(), meeting.waiting.end());
    meeting.waiting.clear();
  }
  pause();
}

void land(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    if (copy.valid) {
      std::memcpy(copy.to, copy.from, 16);
    } else {
      std::memset(copy.to, 0, 16);
    }
  }
}

void enter() {
  try {
    (*body)();
  } catch (const std::exception& error) {
    failure = error.what();
  }
  here->done = true;
  _longjmp(scheduler, 1);
}

void resume(Fiber* fiber) {
  here = fiber;
  thread = fiber->thread;
  block = fiber->block->index;
  shared = fiber->block->shared;
  rank = fiber->block->rank;
  if (_setjmp(scheduler) != 0) return;
  if (fiber->started) _longjmp(fiber->state, 1);
  fiber->started = true;
  setcontext(&fiber->start);
}

enum class Order { forward, backward, shuffled };

// How the launch that runs is emulated.
struct Manner {
  Order order;
  bool early_copies;
  bool hopper_sums;
} manner;

// Which of the names an environment variable has; the first where it is not set.
int choice(const char* variable, const std::vector<std::string>& names) {
  const char* value = std::getenv(variable);
  if (value == nullptr) return 0;
  const auto found = std::find(names.begin(), names.end(), value);
  if (found != names.end()) return int(found - names.begin());

  std::string expected = names.front();
  for (size_t i = 1; i < names.size(); ++i) expected += (i + 1 < names.size() ? ", " : " or ") + names[i];
  throw std::invalid_argument(std::string(variable) + " is " + value + ", expected " + expected);
}

// A number of at least `least`.
int64_t number(const char* variable, int64_t otherwise, int64_t least, const char* example) {
  const char* value = std::getenv(variable);
  if (value == nullptr) return otherwise;
  const std::string text = value;
  const bool digits = !text.empty() && text.size() <= 9 &&
                      std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
  if (digits && std::stoll(text) >= least) return std::stoll(text);
  throw std::invalid_argument(std::string(variable) + " is " + text + ", expected a number such as " + example +
                              ", from " + std::to_string(least) + " on");
}

Manner asked_manner() {
  return {Order(choice("EMCL_EMULATED_ORDER", {"forward", "backward", "shuffled"})),
          choice("EMCL_EMULATED_COPIES", {"late", "early"}) == 1,
          choice("EMCL_EMULATED_SUMS", {"exact", "hopper"}) == 1};
}

void fail(const std::string& what) { throw std::logic_error("emulator: " + what); }

// Runs every fiber to its end. Forward and shuffled go in rounds: each fiber that is ready once, then those that became
// ready. Backward is as unfair as can be: who became ready last goes on, so that one warp, and one block, runs as far
// ahead of the others as barriers let it.
void schedule(const std::vector<Fiber*>& fibers) {
  static std::mt19937 random(1);
  const Order how = manner.order;
  ready = fibers;
  size_t done = 0;
  const auto go_on = [&](Fiber* fiber) {
    resume(fiber);
    if (!failure.empty()) fail(failure);
    done += fiber->done;
  };
  while (!ready.empty()) {
    if (how == Order::backward) {
      Fiber* last = ready.back();
      ready.pop_back();
      go_on(last);
      continue;
    }
    std::vector<Fiber*> round;
    round.swap(ready);
    if (how == Order::shuffled) std::shuffle(round.begin(), round.end(), random);
    for (Fiber* fiber : round) go_on(fiber);
  }
  if (done != fibers.size()) fail("threads wait for others that have left, or that wait elsewhere");
}

}  // namespace

void wait_for_block() { meet(here->block->barrier); }
void wait_for_warp() {
  together([](void* const*) {}, nullptr);
}
void wait_for_cluster() { meet(cluster); }

void together(void (*f)(void* const*), void* mine) {
  Fiber* self = here;
  self->operation = f;
  self->given = mine;
  std::vector<Fiber*>& waiting = self->warp->waiting;
  if (waiting.size() + 1 == self->warp->members) {
    void* lanes[32] = {};
    lanes[self->lane] = mine;
    for (Fiber* other : waiting) {
      if (other->operation != f) throw std::logic_error("lanes of one warp are at different operations");
      lanes[other->lane] = other->given;
    }
    f(lanes);
  }
  meet(*self->warp);
  self->operation = nullptr;
}

char* shared_of(unsigned target, char* at) {
  Block* own = here->block;
  if (target >= cluster_blocks->size())
    throw std::out_of_range("no block of rank " + std::to_string(target) + " in the cluster");
  return (*cluster_blocks)[target]->shared + (at - own->shared);
}

void copy_later(void* to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0))
    throw std::logic_error("an asynchronous copy is not aligned to 16 bytes");
  here->open.push_back({to, from, valid});
  if (manner.early_copies) {
    land(here->open);
    here->open.clear();
  }
}
void commit_copies() {
  here->groups.push_back(std::move(here->open));
  here->open.clear();
}
void await_copies(int pending) {
  while (int(here->groups.size()) > pending) {
    land(here->groups.front());
    here->groups.pop_front();
  }
}

void set_shared(const void* code) {
  const std::lock_guard lock(attributes_in_use);
  attributes[code].shared = SIZE_MAX;  // what the device has may change from launch to launch here
  ++attributes_set;
}
void set_cluster(const void* code) {
  const std::lock_guard lock(attributes_in_use);
  attributes[code].cluster = 16;
  ++attributes_set;
}
unsigned largest_cluster() { return unsigned(number("EMCL_EMULATED_CLUSTER", 16, 1, "8")); }

void run(const void* code, const Dim& grid, unsigned count, size_t bytes, unsigned cluster_size,
         const std::function<void()>& kernel) {
  const std::lock_guard alone(in_use);
  manner = asked_manner();
  const Device device = describe_device(0);
  const Attributes allowed = attributes_of(code);
  if (bytes > device.most_shared)
    fail("a launch asks for " + std::to_string(bytes) + " bytes of shared memory, a block may have " +
         std::to_string(device.most_shared));
  if (bytes > allowed.shared)
    fail(std::to_string(bytes) + " bytes of shared memory, and the kernel's attribute allows " +
         std::to_string(allowed.shared));
  if (cluster_size > allowed.cluster || cluster_size > largest_cluster())
    fail("a cluster of " + std::to_string(cluster_size) + " blocks, more than the kernel or the device allows");
  if (count == 0 || count > 1024 || count % 32 != 0) fail(std::to_string(count) + " threads in a block");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) fail("a grid of impossible size");
  if (grid.x % cluster_size != 0) fail("the grid is not made of whole clusters");
  if (cluster_size > 1 && device.architecture < 90) fail("clusters need architecture 90");
  blocks = grid;
  threads = {count, 1, 1};
  body = &kernel;
  failure.clear();
  const unsigned warps = count / 32;
  static std::vector<std::unique_ptr<Fiber>> pool;  // with their stacks, for every launch
  while (pool.size() < cluster_size * count) {
    pool.push_back(std::make_unique<Fiber>());
    pool.back()->stack.reset(new char[kStack]);
  }
  std::vector<Fiber*> fibers;
  for (unsigned i = 0; i < cluster_size * count; ++i) fibers.push_back(pool[i].get());
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; x += cluster_size) {
        std::vector<std::unique_ptr<Block>> members;
        std::vector<Meeting> all_warps(cluster_size * warps);
        for (unsigned r = 0; r < cluster_size; ++r) {
          auto each = std::make_unique<Block>();
          each->index = {x + r, y, z};
          each->rank = r;
          each->memory.assign(bytes + 2 * kGuard + 1024, char(0xff));
          const uintptr_t start = reinterpret_cast<uintptr_t>(each->memory.data()) + kGuard;
          each->shared = reinterpret_cast<char*>((start + 1023) / 1024 * 1024);
          each->barrier.members = count;
          members.push_back(std::move(each));
          for (unsigned t = 0; t < count; ++t) {
            Fiber& fiber = *fibers[r * count + t];
            fiber.started = fiber.done = false;
            fiber.thread = {t, 0, 0};
            fiber.block = members.back().get();
            fiber.lane = t % 32;
            fiber.warp = &all_warps[r * warps + t / 32];
            fiber.warp->members += 1;
            fiber.groups.clear();
            fiber.open.clear();
            getcontext(&fiber.start);
            fiber.start.uc_stack.ss_sp = fiber.stack.get();
            fiber.start.uc_stack.ss_size = kStack;
            fiber.start.uc_link = nullptr;
            makecontext(&fiber.start, enter, 0);
          }
        }
        cluster = {cluster_size * count, {}};
        cluster_blocks = &members;
        schedule(fibers);
        for (const auto& each : members) {
          const char *first = each->memory.data(), *last = first + each->memory.size();
          const auto touched = [](char c) { return c != char(0xff); };
          if (std::any_of(first, static_cast<const char*>(each->shared), touched) ||
              std::any_of(static_cast<const char*>(each->shared) + bytes, last, touched))
            fail("a write outside of shared memory");
        }
      }
}

}  // namespace emulator

Device describe_device(int index) {
  const int architecture = int(emulator::number("EMCL_EMULATED_ARCHITECTURE", 90, 80, "90"));
  const int64_t usual = architecture >= 90 ? 227 * 1024 : int64_t(kNeededShared);
  return {index, architecture, 4, size_t(emulator::number("EMCL_EMULATED_SHARED", usual, 1024, "101376"))};
}

// ---- numbers
// ---------------------------------------------------------------------------------------------------------

namespace {
uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
// The tensor cores' rounding.
float towards_zero(double x) {
  const float nearest = float(x);
  return std::isfinite(nearest) && std::fabs(double(nearest)) > std::fabs(x) ? std::nextafterf(nearest, 0.0f) : nearest;
}

// The exponent under which the tensor cores hold x: numbers below `least` have that one.
int exponent_of(float x, int least) {
  return x == 0 ? INT_MIN / 4 : std::max(int(bits_of(x) >> 23 & 0xff) - 127, least);
}

// start + Σ products as Hopper's tensor cores add them up: every addend is cut, towards zero, to the 25 bits below the
// largest exponent among them; a product's exponent is the sum of its factors'. Such are the models of arXiv 2511.10909
// and 2512.07004.
template <int DEPTH>
double aligned_sum(float start, const double (&products)[DEPTH], const int (&exponents)[DEPTH]) {
  constexpr int kBits = 25;
  const int largest = std::max(exponent_of(start, -126), *std::max_element(exponents, exponents + DEPTH));
  if (largest < INT_MIN / 8) return start;  // nothing but zeros

  const double unit = std::ldexp(1.0, largest - kBits), in_units = std::ldexp(1.0, kBits - largest);
  int64_t sum = int64_t(double(start) * in_units);
  for (const double product : products) sum += int64_t(product * in_units);
  return double(sum) * unit;
}
}  // namespace

float half_to_float(uint16_t bits) {
  _Float16 x;
  std::memcpy(&x, &bits, 2);
  return float(x);
}
uint16_t float_to_half(float value) {
  const _Float16 x = _Float16(value);
  uint16_t bits;
  std::memcpy(&bits, &x, 2);
  return bits;
}
uint16_t float_to_bfloat(float x) {
  const uint32_t bits = bits_of(x);
  if (x != x) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
uint32_t round_tf32(float x) {
  return x != x ? bits_of(x) : (bits_of(x) + 0x1000) & 0xffffe000;
}  // ties away from zero

// ---- operations of a warp ----------------------------------------------------------------------------------------

namespace {

struct Exchange {
  float value;
  int from;
  float result;
};
void exchange(void* const* lanes) {
  for (int i = 0; i < 32; ++i) {
    auto& own = *static_cast<Exchange*>(lanes[i]);
    own.result = static_cast<Exchange*>(lanes[own.from & 31])->value;
  }
}

struct Multiply {
  float* d;
  const uint32_t *a, *b;
};
float from_bfloat(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

// k16: two numbers of 16 bits in a register; k8: one of 32. LEAST: the least exponent of a factor.
template <int DEPTH, int LEAST, class A, class B>
void multiply_fragments(void* const* lanes, const A& a_at, const B& b_at) {
  float a[16][DEPTH], b[8][DEPTH];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const Multiply*>(lanes[lane]);
    a_at(own.a, lane / 4, lane % 4, a);
    b_at(own.b, lane / 4, lane % 4, b);
  }
  int a_exponents[16][DEPTH], b_exponents[8][DEPTH];
  const bool hopper = emulator::manner.hopper_sums;
  for (int k = 0; k < DEPTH && hopper; ++k) {
    for (int i = 0; i < 16; ++i) a_exponents[i][k] = exponent_of(a[i][k], LEAST);
    for (int i = 0; i < 8; ++i) b_exponents[i][k] = exponent_of(b[i][k], LEAST);
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<const Multiply*>(lanes[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      double products[DEPTH], sum = d[i];
      for (int k = 0; k < DEPTH; ++k) {
        products[k] = double(a[row][k]) * double(b[column][k]);
        sum += products[k];
      }
      if (hopper && std::isfinite(sum)) {
        int exponents[DEPTH];
        for (int k = 0; k < DEPTH; ++k) exponents[k] = a_exponents[row][k] + b_exponents[column][k];
        sum = aligned_sum<DEPTH>(d[i], products, exponents);
      }
      d[i] = towards_zero(sum);
    }
  }
}
template <float (*WIDEN)(uint16_t), int LEAST>
void multiply_16_bits(void* const* lanes) {
  multiply_fragments<16, LEAST>(
      lanes,
      [](const uint32_t* from, int group, int member, float (&a)[16][16]) {
        for (int i = 0; i < 4; ++i)
          for (int j = 0; j < 2; ++j)
            a[group + i % 2 * 8][member * 2 + i / 2 * 8 + j] = WIDEN(uint16_t(from[i] >> 16 * j));
      },
      [](const uint32_t* from, int group, int member, float (&b)[8][16]) {
        for (int i = 0; i < 2; ++i)
          for (int j = 0; j < 2; ++j) b[group][member * 2 + i * 8 + j] = WIDEN(uint16_t(from[i] >> 16 * j));
      });
}
void multiply_32_bits(void* const* lanes) {
  const auto tf32 = [](uint32_t bits) { return float_of(bits & 0xffffe000); };
  multiply_fragments<8, -126>(
      lanes,
      [&](const uint32_t* from, int group, int member, float (&a)[16][8]) {
        for (int i = 0; i < 4; ++i) a[group + i % 2 * 8][member + i / 2 * 4] = tf32(from[i]);
      },
      [&](const uint32_t* from, int group, int member, float (&b)[8][8]) {
        for (int i = 0; i < 2; ++i) b[group][member + i * 4] = tf32(from[i]);
      });
}

struct Load {
  uint32_t* r;
  const uint16_t* row;
};
template <bool TRANSPOSED>
void load_fragments(void* const* lanes) {
  for (int i = 0; i < 32; ++i) {
    const auto& own = *static_cast<const Load*>(lanes[i]);
    for (int m = 0; m < 4; ++m) {
      const auto at = [&](int row, int column) {
        return uint32_t(static_cast<const Load*>(lanes[m * 8 + row])->row[column]);
      };
      const int pair = i % 4 * 2;
      own.r[m] = TRANSPOSED ? at(pair, i / 4) | at(pair + 1, i / 4) << 16 : at(i / 4, pair) | at(i / 4, pair + 1) << 16;
    }
  }
}
template <bool TRANSPOSED>
void load_together(uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    throw std::logic_error("a row of a matrix is not aligned to 16 bytes");
  Load mine{r, static_cast<const uint16_t*>(row)};
  emulator::together(load_fragments<TRANSPOSED>, &mine);
}

float exchanged(float x, int from) {
  Exchange mine{x, from, 0};
  emulator::together(exchange, &mine);
  return mine.result;
}

}  // namespace

float shuffle_xor(float x, int mask) { return exchanged(x, int(emulator::thread.x % 32) ^ mask); }
float shuffle(float x, int lane) { return exchanged(x, lane); }
bool any_of_warp(bool x) {
  float found = x;
  for (int step = 16; step > 0; step /= 2) found += shuffle_xor(found, step);
  return found > 0;
}

void multiply_bfloat(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Multiply mine{d, a, b};
  emulator::together(multiply_16_bits<from_bfloat, -126>, &mine);
}
void multiply_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Multiply mine{d, a, b};
  emulator::together(multiply_16_bits<half_to_float, -14>, &mine);
}
void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Multiply mine{d, a, b};
  emulator::together(multiply_32_bits, &mine);
}
void load_matrices(uint32_t (&r)[4], const void* row) { load_together<false>(r, row); }
void load_matrices_transposed(uint32_t (&r)[4], const void* row) { load_together<true>(r, row); }

}  // namespace emcl

// For tests: how many attributes were set since the process started or forgot them.
#define EMCL_EXPORT extern "C" __attribute__((visibility("default")))
EMCL_EXPORT int64_t emcl_emulated_attributes() {
  const std::lock_guard lock(emcl::emulator::attributes_in_use);
  return emcl::emulator::attributes_set;
}
EMCL_EXPORT void emcl_emulated_forget_attributes() {
  emcl::shared_memory_is_set.forget();
  emcl::cluster_size_is_set.forget();
  const std::lock_guard lock(emcl::emulator::attributes_in_use);
  emcl::emulator::attributes.clear();
  emcl::emulator::attributes_set = 0;
}
