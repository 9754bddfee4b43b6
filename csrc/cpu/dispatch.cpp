// Chooses the instruction set that the kernels of this process use.
#include <cstdlib>
#include <string>

#include "cpu/isa.h"

namespace emcl {
namespace {

struct Isa {
  const char* name;
  const Kernels* table;
};

// The widest instruction set that this machine has; EMCL_ISA=baseline|avx2|avx512 narrows it, for tests.
Isa select() {
  const char* wanted = std::getenv("EMCL_ISA");
  [[maybe_unused]] const std::string limit = wanted == nullptr ? "" : wanted;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (avx512 && (limit.empty() || limit == "avx512")) return {"avx512", kAvx512};
  if (avx2 && limit != "baseline") return {"avx2", kAvx2};
#endif
  return {"baseline", kBaseline};
}

const Isa& isa() {
  static const Isa selected = select();
  return selected;
}

}  // namespace

const Kernels& kernels(Element element) { return isa().table[int(element)]; }

}  // namespace emcl

extern "C" __attribute__((visibility("default"))) const char* emcl_isa() { return emcl::isa().name; }
