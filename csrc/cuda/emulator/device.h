// The emulator: runs kernels on the host, for tests without a GPU. Every thread of a block, or of a cluster of blocks,
// is a fiber that runs until it has to wait for others: at barriers, in operations of a whole warp, and where it ends.
//
// It is stricter than a device: memory starts as NaN, asynchronous copies land when they are waited for and not before,
// operations of a warp must be reached by all 32 lanes at the same place, and the order in which fibers run can be
// changed (EMCL_EMULATED_ORDER=forward|backward|shuffled), so that a missing barrier shows. Sums of the tensor cores
// are rounded towards zero, as on a device. It knows nothing of time, registers, banks, or how blocks share a device.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <tuple>

#include "cuda/call.h"

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

void run(const Dim& blocks, unsigned threads, size_t shared, unsigned cluster, const std::function<void()>& kernel);

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

float shuffle_xor(float x, int mask);
float shuffle(float x, int lane);

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

Device describe_device(int index);  // EMCL_EMULATED_ARCHITECTURE, 90 where it is not set

struct Launch {
  unsigned x, y = 1, z = 1;
  unsigned threads = 128;
  size_t shared = 0;
  unsigned cluster = 1;
};

template <class... P, class... A>
void launch(Stream, const Launch& shape, void (*kernel)(P...), A... arguments) {
  const std::tuple<P...> bound{P(arguments)...};
  emulator::run({shape.x, shape.y, shape.z}, shape.threads, shape.shared, shape.cluster,
                [&] { std::apply(kernel, bound); });
}

template <class... P>
bool has_room(const Launch& shape, void (*)(P...)) {
  return shape.cluster <= 16;
}

}  // namespace emcl

inline void __syncthreads() { emcl::emulator::wait_for_block(); }
inline void __syncwarp() { emcl::emulator::wait_for_warp(); }
#define threadIdx (emcl::emulator::thread)
#define blockIdx (emcl::emulator::block)
#define gridDim (emcl::emulator::blocks)
#define blockDim (emcl::emulator::threads)
