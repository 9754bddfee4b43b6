// The emulator: runs kernels on the host, for tests without a GPU. Every thread of a block, or of a cluster of blocks,
// is a fiber that runs until it has to wait for others: at barriers, in operations of a whole warp, and where it ends.
//
// It is stricter than a device: memory starts as NaN, operations of a warp must be reached by all 32 lanes at the same
// place, and what a device leaves open is as it is asked for, so that a missing barrier shows. Read at each launch:
//   EMCL_EMULATED_ORDER=forward|backward|shuffled  in which order fibers run
//   EMCL_EMULATED_COPIES=late|early                asynchronous copies land when they are waited for, or at once
//   EMCL_EMULATED_SUMS=exact|hopper                what the tensor cores add is added exactly; or cut to the 25 bits
//                                                  below the largest addend's exponent, as on Hopper
//   EMCL_EMULATED_ARCHITECTURE=90                  80, 90, ...
//   EMCL_EMULATED_SHARED=101376                    bytes that a block may have, in place of the architecture's
//   EMCL_EMULATED_CLUSTER=8                        blocks of the largest cluster that the device has room for
// Sums are rounded towards zero, as on a device. It knows nothing of time, registers, banks, or how blocks share a
// device.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <tuple>

#include "cuda/call.h"
#include "cuda/tile/attributes.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }

namespace emcl {

namespace emulator {

struct Dim {
  unsigned x, y, z;
};
// Of the fiber that runs.
extern Dim thread, block, blocks, threads;
extern char* shared;
extern unsigned rank;

void wait_for_block();
void wait_for_warp();
void wait_for_cluster();
// Calls `f` once for all 32 lanes of the warp, with what each of them gave. `f` must be the same for all.
void together(void (*f)(void* const* lanes), void* mine);
char* shared_of(unsigned rank, char* here);
void copy_later(void* to, const void* from, bool valid);
void commit_copies();
void await_copies(int pending);

void set_shared(const void* code);
void set_cluster(const void* code);
void run(const void* code, const Dim& blocks, unsigned threads, size_t shared, unsigned cluster,
         const std::function<void()>& kernel);
unsigned largest_cluster();

}  // namespace emulator

float half_to_float(uint16_t bits);
uint16_t float_to_half(float x);
uint16_t float_to_bfloat(float x);
inline uint32_t pack_half(float first, float second) {
  return float_to_half(first) | uint32_t(float_to_half(second)) << 16;
}
inline uint32_t pack_bfloat(float first, float second) {
  return float_to_bfloat(first) | uint32_t(float_to_bfloat(second)) << 16;
}

inline char* dynamic_shared() { return emulator::shared; }

inline int afresh(int x) { return x; }

inline float rounded_product(float a, float b) {
  volatile float product = a * b;
  return product;
}

float shuffle_xor(float x, int mask);
float shuffle(float x, int lane);
bool any_of_warp(bool x);

void multiply_bfloat(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void multiply_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
uint32_t round_tf32(float x);
void load_matrices(uint32_t (&r)[4], const void* row);
void load_matrices_transposed(uint32_t (&r)[4], const void* row);

inline void copy_async(void* shared, const void* global, bool valid) { emulator::copy_later(shared, global, valid); }
inline void copies_commit() { emulator::commit_copies(); }
template <int pending>
void copies_wait() {
  emulator::await_copies(pending);
}

inline uint32_t cluster_rank() { return emulator::rank; }
inline void cluster_sync() { emulator::wait_for_cluster(); }
template <class T>
T* in_block(T* shared, uint32_t rank) {
  return reinterpret_cast<T*>(emulator::shared_of(rank, reinterpret_cast<char*>(shared)));
}

Device describe_device(int index);

struct Launch {
  unsigned x, y = 1, z = 1;
  unsigned threads = 128;
  size_t shared = 0;
  unsigned cluster = 1;
};

inline void configure(const Launch& shape, const void* code) {
  set_attributes(
      code, 0, shape.shared, shape.cluster, [&] { emulator::set_shared(code); }, [&] { emulator::set_cluster(code); });
}

template <class... P, class... A>
void launch(Stream, const Launch& shape, void (*kernel)(P...), A... arguments) {
  const void* code = reinterpret_cast<const void*>(kernel);
  configure(shape, code);
  const std::tuple<P...> bound{P(arguments)...};
  emulator::run(code, {shape.x, shape.y, shape.z}, shape.threads, shape.shared, shape.cluster,
                [&] { std::apply(kernel, bound); });
}

template <class... P>
bool has_room(const Launch& shape, void (*kernel)(P...)) {
  configure(shape, reinterpret_cast<const void*>(kernel));
  return shape.cluster <= emulator::largest_cluster() && shape.shared <= describe_device(0).most_shared;
}

}  // namespace emcl

inline void __syncthreads() { emcl::emulator::wait_for_block(); }
inline void __syncwarp() { emcl::emulator::wait_for_warp(); }
#define threadIdx (emcl::emulator::thread)
#define blockIdx (emcl::emulator::block)
#define gridDim (emcl::emulator::blocks)
#define blockDim (emcl::emulator::threads)
