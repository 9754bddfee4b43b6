// Chooses the instruction set that the kernels of this process use.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace emcl {
namespace {

struct Isa {
  const char* name;
  const Kernels* table;
};

// The instruction sets that this machine has, the widest first.
std::vector<Isa> available() {
  std::vector<Isa> all;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (avx512) all.push_back({"avx512", kAvx512});
  if (avx2) all.push_back({"avx2", kAvx2});
#endif
  all.push_back({"baseline", kBaseline});
  return all;
}

// Their names, each after a space.
std::string names() {
  std::string all;
  for (const Isa& isa : available()) all += std::string(" ") + isa.name;
  return all;
}

// The widest, or the one that EMCL_ISA asks for, for tests; none if that is not there.
Isa select() {
  const char* wanted = std::getenv("EMCL_ISA");
  const std::string name = wanted == nullptr ? "" : wanted;
  for (const Isa& isa : available())
    if (name.empty() || name == isa.name) return isa;
  return {"", nullptr};
}

const Isa& isa() {
  static const Isa selected = select();
  return selected;
}

}  // namespace

const Kernels& kernels(Element element) {
  const Kernels* table = isa().table;
  if (table == nullptr)
    throw std::invalid_argument("emcl: EMCL_ISA asks for what is not there; expected one of" + names());
  return table[int(element)];
}

}  // namespace emcl

// The one in use; empty if EMCL_ISA asks for one that is not there.
extern "C" __attribute__((visibility("default"))) const char* emcl_isa() { return emcl::isa().name; }
