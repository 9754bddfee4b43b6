// Vectors of the instruction set that this file is compiled for, and the number types of the rows.
// Everything here and in the other headers is in an unnamed namespace: the same source is compiled once per
// instruction set, and the linker must not merge the copies.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
template <class T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof(v));
}
template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};
}

template <class I>
inline I least(I a, I b) {
  return a < b ? a : b;
}
template <class I>
inline I most(I a, I b) {
  return a > b ? a : b;
}

// f over all lanes, upper half with lower half until one number is left. GCC takes 64 bytes apart through memory,
// unless it is told how.
template <class T, int N, class V, class F>
inline T fold(V v, const F& f) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    typedef T Half __attribute__((vector_size(N * sizeof(T) / 2)));
    Half lower, upper;
    std::memcpy(&lower, &v, sizeof(Half));
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {
      upper = Half(_mm512_maskz_extractf64x4_pd(0xf, __m512d(v), 1));
    } else
#endif
      std::memcpy(&upper, reinterpret_cast<const char*>(&v) + sizeof(Half), sizeof(Half));
    return fold<T, N / 2, Half>(f(lower, upper), f);
  }
}
template <class T>
inline T sum_of_lanes(Vec<T> v) {
  return fold<T, kLanes<T>>(v, [](auto a, auto b) { return a + b; });
}
template <class T>
inline T most_of_lanes(Vec<T> v) {
  return fold<T, kLanes<T>>(v, [](auto a, auto b) { return a > b ? a : b; });
}
// Whether any lane of a comparison holds.
template <class M>
inline bool any(M mask) {
  int64_t parts[sizeof(M) / 8], all = 0;
  std::memcpy(parts, &mask, sizeof(mask));
  for (const int64_t part : parts) all |= part;
  return all != 0;
}
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Memory for intermediate results, on cache lines.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t size) : data_(allocate(size)) {}
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }
  void clear(int64_t size) { std::memset(data_, 0, size_t(size) * sizeof(T)); }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  static T* allocate(int64_t size) {
    constexpr int64_t kMost = (INT64_MAX - 64) / int64_t(sizeof(T));
    if (size < 0 || size > kMost) throw std::bad_alloc();  // a product of sizes that is no memory's
    const size_t bytes = size_t(round_up(most<int64_t>(size, 1) * int64_t(sizeof(T)), 64));
    T* data = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data == nullptr) throw std::bad_alloc();
    return data;
  }
  T* data_;
};

// The number types of rows. Compute<E> is what they are accumulated in.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
template <class E>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class E>
using Compute = typename ComputeOf<E>::type;

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline float widen(Float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = (x.bits >> 10) & 31, fraction = x.bits & 1023;
  if (exponent == 0) {
    const float value = float(fraction) * 5.9604644775390625e-08f;  // subnormal: units of 2^-24
    return sign ? -value : value;
  }
  const uint32_t bits = sign | ((exponent == 31 ? 255 : exponent + 112) << 23) | (fraction << 13);
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
#endif
}

inline void narrow(float x, float* out) { *out = x; }
inline void narrow(double x, double* out) { *out = x; }
inline void narrow(float x, BFloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) {
    out->bits = uint16_t((bits >> 16) | 0x40);  // NaN stays NaN
    return;
  }
  out->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void narrow(float x, Float16* out) {
#if defined(__F16C__)
  out->bits = _cvtss_sh(x, 0);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) {
    out->bits = sign | 0x7e00;
  } else if (bits >= 0x477ff000) {
    out->bits = sign | 0x7c00;
  } else if (bits < 0x38800000) {
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    out->bits = uint16_t(sign | uint16_t(std::nearbyint(magnitude * 16777216.0f)));
  } else {
    out->bits = uint16_t(sign | ((bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13));
  }
#endif
}

// exp of numbers that are not above zero, to 1e-7. Below -87 it stays at exp(-87) instead of falling to a subnormal.
inline Vec<float> exp_of_nonpositive(Vec<float> x) {
  typedef VecOf<float>::mask Int;
  const Vec<float> magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  x = x < splat(-87.0f) ? splat(-87.0f) : x;
  const Vec<float> shifted = x * 1.44269504088896341f + magic;
  const Vec<float> n = shifted - magic;
  Vec<float> r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Int bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 127) << 23;
  Vec<float> power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}
inline Vec<double> exp_of_nonpositive(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace
