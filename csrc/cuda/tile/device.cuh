// What kernels use of the device: the few primitives that are not plain C++. In a build with EMCL_EMULATED the same
// names come from the emulator, which runs kernels on the host, thread by thread, so that tests need no GPU.
//
// Kernels keep to these and to threadIdx, blockIdx, blockDim, gridDim, __syncthreads and __syncwarp. Shared memory is
// dynamic only. Fragments are those of the PTX ISA, "Matrix Fragments for mma.m16n8k16" and "mma.m16n8k8".
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/call.h"

#if defined(EMCL_EMULATED)
#include "cuda/emulator/device.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/tile/attributes.h"

namespace emcl {

// ---- on the device ----

__device__ __forceinline__ float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ __forceinline__ uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
__device__ __forceinline__ uint16_t float_to_bfloat(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
// Two at once, the first in the lower half.
__device__ __forceinline__ uint32_t pack_half(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(bits) : "f"(first), "f"(second));
  return bits;
}
__device__ __forceinline__ uint32_t pack_bfloat(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(bits) : "f"(first), "f"(second));
  return bits;
}

// The block's dynamic shared memory.
__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}

// The same number, unknown to the compiler: what follows from it is computed here and not kept in registers from
// before.
__device__ __forceinline__ int afresh(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// a·b, rounded: never fused with a sum or a difference that it goes into.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }

__device__ __forceinline__ float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
__device__ __forceinline__ float shuffle(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
__device__ __forceinline__ bool any_of_warp(bool x) { return __any_sync(0xffffffffu, x); }

// d[16, 8] += a[16, 16]·b[16, 8], accumulated in float32.
__device__ __forceinline__ void multiply_bfloat(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void multiply_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// d[16, 8] += a[16, 8]·b[8, 8] in TF32: a and b as `round_tf32` gives them.
__device__ __forceinline__ void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ uint32_t round_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// Four 8x8 matrices of 16-bit numbers; lane i names row i % 8 of matrix i / 8, 16 bytes in shared memory.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}
// The same, each matrix transposed on the way.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

// 16 bytes from global to shared memory, or 16 zero bytes where not `valid`; there after copies_wait and a barrier.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(uint32_t(__cvta_generic_to_shared(shared))), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's committed groups are still on their way.
template <int pending>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Clusters of blocks, sm_90 and later; a kernel that names them must not be launched on anything older.
__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
// Writes to shared memory before it are seen by all threads of the cluster after it.
__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// The same place in the shared memory of another block of the cluster.
template <class T>
__device__ __forceinline__ T* in_block(T* shared, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(shared), "r"(rank));
  return reinterpret_cast<T*>(address);
#else
  return shared;
#endif
}

// ---- on the host ----

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the next call would report it again
  throw std::runtime_error(std::string("emcl: ") + what + ": " + cudaGetErrorString(status));
}

inline int attribute_of(int device, cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

inline Device describe_device(int index) {
  const int major = attribute_of(index, cudaDevAttrComputeCapabilityMajor),
            minor = attribute_of(index, cudaDevAttrComputeCapabilityMinor);
  return {index, 10 * major + minor, attribute_of(index, cudaDevAttrMultiProcessorCount),
          size_t(attribute_of(index, cudaDevAttrMaxSharedMemoryPerBlockOptin))};
}

struct Launch {
  unsigned x, y = 1, z = 1;  // blocks
  unsigned threads = 128;    // a block
  size_t shared = 0;         // bytes a block
  unsigned cluster = 1;      // blocks along x
};

// A launch as the runtime takes it.
struct Configuration {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute cluster{};

  // On the current device.
  Configuration(Stream stream, const Launch& shape, const void* code) {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    const auto set = [&](cudaFuncAttribute which, int value, const char* what) {
      check(cudaFuncSetAttribute(code, which, value), what);
    };
    set_attributes(
        code, device, shape.shared, shape.cluster,
        [&] {
          const int most = attribute_of(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
          set(cudaFuncAttributeMaxDynamicSharedMemorySize, most, "shared memory");
        },
        [&] { set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1, "cluster size"); });

    config.gridDim = dim3(shape.x, shape.y, shape.z);
    config.blockDim = dim3(shape.threads);
    config.dynamicSmemBytes = shape.shared;
    config.stream = stream;
    if (shape.cluster > 1) {
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim = {shape.cluster, 1, 1};
      config.attrs = &cluster;
      config.numAttrs = 1;
    }
  }
  Configuration(const Configuration&) = delete;
};

template <class... P, class... A>
void launch(Stream stream, const Launch& shape, void (*kernel)(P...), A... arguments) {
  const Configuration all(stream, shape, reinterpret_cast<const void*>(kernel));
  check(cudaLaunchKernelEx(&all.config, kernel, P(arguments)...), "kernel launch");
}

// Whether a cluster of this shape can run on the current device: more than 8 blocks need not.
template <class... P>
bool has_room(const Launch& shape, void (*kernel)(P...)) {
  const Configuration all(nullptr, shape, reinterpret_cast<const void*>(kernel));
  int clusters = 0;
  const cudaError_t status = cudaOccupancyMaxActiveClusters(&clusters, kernel, &all.config);
  if (status != cudaSuccess) cudaGetLastError();  // an impossible size is an error, too
  return status == cudaSuccess && clusters > 0;
}

}  // namespace emcl
#endif
