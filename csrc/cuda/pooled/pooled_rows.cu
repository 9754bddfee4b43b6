// What the pooled similarity does to rows and matrices besides multiplying them.
#include "cuda/pooled/pooled_tile.cuh"

namespace emcl {
namespace pooled {
namespace {

// Eight numbers of a row from `column` on, padded with zeros. wide: see rows_are_wide
template <class E>
__device__ __forceinline__ void load_eight(const E* row, int64_t column, int64_t width, bool wide,
                                           float (&numbers)[8]) {
#pragma unroll
  for (int half = 0; half < 8; half += Piece<E>::kSize) {
    const E* from = row + column + half;
    const int64_t left = width - column - half;
    const Piece<E> piece = wide && left > 0 ? load_piece(from) : gather_piece(from, left);
#pragma unroll
    for (int j = 0; j < Piece<E>::kSize; ++j) numbers[half + j] = piece.number(j);
  }
}
template <class P>
__device__ __forceinline__ void store_eight(const Matrix16& to, int64_t row, int64_t column,
                                            const float (&numbers)[8]) {
  uint32_t parts[4][P::count];
#pragma unroll
  for (int j = 0; j < 4; ++j) split_pair<P>(numbers[2 * j], numbers[2 * j + 1], parts[j]);
#pragma unroll
  for (int part = 0; part < P::count; ++part)
    *reinterpret_cast<uint4*>(to.numbers + part * to.part + row * to.stride + column) =
        make_uint4(parts[0][part], parts[1][part], parts[2][part], parts[3][part]);
}

// One warp for each row of frames and then of texts.
template <class E>
__global__ void pack_rows_kernel(const E* frames, int64_t frame_rows, const E* text, int64_t rows, int64_t width,
                                 bool wide, Matrix16 exact, Matrix16 own, float* scale) {
  const int64_t row = int64_t(blockIdx.x) * (blockDim.x / 32) + warp_of();
  if (row >= rows) return;
  const E* from = row < frame_rows ? frames + row * width : text + (row - frame_rows) * width;
  float factor = 1;
  if constexpr (std::is_same_v<OwnRows<E>, Scaled>) {
    // a power of two that brings the largest number to between 2^14 and 2^15
    float largest = 0;
    for (int64_t column = 8 * lane_of(); column < width; column += 256) {
      float numbers[8];
      load_eight(from, column, width, wide, numbers);
#pragma unroll
      for (int j = 0; j < 8; ++j) largest = fmaxf(largest, fabsf(numbers[j]));
    }
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, shuffle_xor(largest, step));
    const uint32_t exponent = as_bits(largest) >> 23;
    const bool usual = exponent > 14 && exponent < 255;
    if (usual) factor = as_float((268 - exponent) << 23);
    if (own.numbers != nullptr && lane_of() == 0) scale[row] = usual ? as_float((exponent - 14) << 23) : 1.0f;
  }
  for (int64_t column = 8 * lane_of(); column < exact.stride; column += 256) {
    float numbers[8];
    load_eight(from, column, width, wide, numbers);
    store_eight<ExactRows<E>>(exact, row, column, numbers);
    if (own.numbers == nullptr) continue;
#pragma unroll
    for (int j = 0; j < 8; ++j) numbers[j] *= factor;
    store_eight<OwnRows<E>>(own, row, column, numbers);
  }
}

// Each thread takes eight numbers of a row.
template <class P>
__global__ void pack_kernel(const float* x, int64_t rows, int64_t width, bool wide, Matrix16 out) {
  const int64_t pieces = out.stride / 8, index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t row = index / pieces, column = index % pieces * 8;
  if (row >= rows) return;
  float numbers[8];
  load_eight(x + row * width, column, width, wide, numbers);
  store_eight<P>(out, row, column, numbers);
}

__global__ void pack_symmetric_kernel(const float* x, int64_t width, Matrix16 out) {
  const int64_t pairs = out.stride / 2, index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t row = index / pairs, column = index % pairs * 2;
  if (row >= width) return;
  float both[2] = {0, 0};
  for (int j = 0; j < 2; ++j)
    if (column + j < width) both[j] = x[row * width + column + j] + x[(column + j) * width + row];
  store_pair(out, row, column, both[0], both[1]);
}

__global__ void add_parts_kernel(const float* parts, int64_t count, int64_t size, float* out) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size) return;
  const float* from = parts + int64_t(blockIdx.y) * count * size + i;
  float sum = 0;
  for (int64_t part = 0; part < count; ++part) sum += from[part * size];
  out[blockIdx.y * size + i] = sum;
}

__global__ void add_upper_parts_kernel(const float* parts, int64_t count, int64_t width, float* out) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, size = width * width;
  if (i >= size) return;
  const int64_t row = i / width, column = i % width;
  const float* from = parts + blockIdx.y * count * size + (row < column ? i : column * width + row);
  float sum = 0;
  for (int64_t part = 0; part < count; ++part) sum += from[part * size];
  out[blockIdx.y * size + i] = sum;
}

// One warp for each row, four numbers for each lane at a time.
template <class E>
__global__ void finish_kernel(const Finish f, int64_t rows, int64_t width, bool wide, E* out) {
  const int64_t row = int64_t(blockIdx.x) * (blockDim.x / 32) + warp_of();
  if (row >= rows) return;
  const float own_scale = f.own_scale == nullptr ? 0.0f : f.own_scale[row];
  const float vector_scale = f.vector_scale == nullptr ? 1.0f : f.vector_scale[row];
  for (int64_t column = 4 * lane_of(); column < width; column += 128) {
    const int64_t at = row * width + column, count = width - column < 4 ? width - column : 4;
    float sums[4] = {};
    for (int64_t part = 0; part < f.parts; ++part) {
      const float* from = f.sums + part * rows * width + at;
      if (wide) {
        const float4 four = *reinterpret_cast<const float4*>(from);
        sums[0] += four.x;
        sums[1] += four.y;
        sums[2] += four.z;
        sums[3] += four.w;
      } else {
        for (int j = 0; j < count; ++j) sums[j] += from[j];
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < count) {
        if (f.own_scale != nullptr) sums[j] += own_scale * widen(static_cast<const E*>(f.own)[at + j]);
        if (f.vector != nullptr) sums[j] += vector_scale * f.vector[column + j];
      }
    if (wide) {
      if constexpr (sizeof(E) == 4)
        *reinterpret_cast<float4*>(out + at) = make_float4(sums[0], sums[1], sums[2], sums[3]);
      else
        *reinterpret_cast<uint2*>(out + at) = make_uint2(pack<E>(sums[0], sums[1]), pack<E>(sums[2], sums[3]));
    } else {
      for (int j = 0; j < count; ++j) out[at + j] = narrow<E>(sums[j]);
    }
  }
}

}  // namespace

PackedRows pack_rows(const Call& call, Element element, const Pool& size, const void* text, const void* frames,
                     bool with_own) {
  PackedRows packed{};
  const int64_t frame_rows = size.videos * size.frames, rows = frame_rows + size.texts;
  if (rows > INT32_MAX) throw std::invalid_argument("emcl: more than 2^31 rows of frames and texts");
  with_element(element, [&](auto zero) {
    using E = decltype(zero);
    constexpr bool kSame = std::is_same_v<OwnRows<E>, ExactRows<E>>;
    packed.exact = allocate_matrix(call, rows, size.width, ExactRows<E>::count);
    if (with_own && !kSame) packed.own = allocate_matrix(call, rows, size.width, OwnRows<E>::count);
    float* scale = with_own && std::is_same_v<OwnRows<E>, Scaled> ? allocate<float>(call, rows) : nullptr;
    packed.scale = scale;
    const bool wide = rows_are_wide<E>(text, size.width) && rows_are_wide<E>(frames, size.width);
    launch(call.stream, warps_for(rows), pack_rows_kernel<E>, static_cast<const E*>(frames), frame_rows,
           static_cast<const E*>(text), rows, size.width, wide, packed.exact, packed.own, scale);
    if (kSame) packed.own = packed.exact;
  });
  return packed;
}

Matrix16 pack_matrix(const Call& call, const float* x, int64_t rows, int64_t width, int parts) {
  const Matrix16 out = allocate_matrix(call, rows, width, parts);
  launch(call.stream, threads_for(rows * (out.stride / 8)), parts == 2 ? pack_kernel<Split> : pack_kernel<Exact>, x,
         rows, width, rows_are_wide<float>(x, width), out);
  return out;
}

Matrix16 pack_symmetric(const Call& call, const float* x, int64_t width, int parts) {
  const Matrix16 out = allocate_matrix(call, width, width, parts);
  launch(call.stream, threads_for(width * (out.stride / 2)), pack_symmetric_kernel, x, width, out);
  return out;
}

void add_parts(const Call& call, const float* parts, int64_t problems, int64_t count, int64_t size, float* out) {
  launch(call.stream, threads_for(size, problems), add_parts_kernel, parts, count, size, out);
}

void add_upper_parts(const Call& call, const float* parts, int64_t problems, int64_t count, int64_t width, float* out) {
  launch(call.stream, threads_for(width * width, problems), add_upper_parts_kernel, parts, count, width, out);
}

void finish_rows(const Call& call, Element element, const Finish& f, int64_t rows, int64_t width, void* out) {
  with_element(element, [&](auto zero) {
    using E = decltype(zero);
    const bool wide =
        (reinterpret_cast<uintptr_t>(f.sums) | reinterpret_cast<uintptr_t>(out) | size_t(width) * 4) % 16 == 0;
    launch(call.stream, warps_for(rows), finish_kernel<E>, f, rows, width, wide, static_cast<E*>(out));
  });
}

}  // namespace pooled
}  // namespace emcl
