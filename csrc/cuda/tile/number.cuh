// Number types of the rows, with their conversions on the device, in the emulator and on the host.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/tile/device.cuh"

namespace emcl {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

__device__ __forceinline__ float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
__device__ __forceinline__ uint32_t as_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(BFloat16 x) { return as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float widen(Float16 x) { return half_to_float(x.bits); }

// Round to nearest, ties to even.
template <class E>
__device__ __forceinline__ E narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float x) {
  return {float_to_bfloat(x)};
}
template <>
__device__ __forceinline__ Float16 narrow<Float16>(float x) {
  return {float_to_half(x)};
}

// Two numbers of 16 bits as the tensor cores take them: the first in the lower half.
template <class E>
__device__ __forceinline__ uint32_t pack(float first, float second);
template <>
__device__ __forceinline__ uint32_t pack<BFloat16>(float first, float second) {
  return pack_bfloat(first, second);
}
template <>
__device__ __forceinline__ uint32_t pack<Float16>(float first, float second) {
  return pack_half(first, second);
}

// x = high + low + at most 2^-17·|x|, both bfloat16. Three products of such pairs keep 16 bits of a float32 product.
__device__ __forceinline__ void split(float x, BFloat16& high, BFloat16& low) {
  high = narrow<BFloat16>(x);
  low = narrow<BFloat16>(x - widen(high));
}

}  // namespace emcl
