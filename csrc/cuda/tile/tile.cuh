// Tiles of rows in shared memory, and products of them on the tensor cores.
//
//   Parts<Number, count>      how numbers enter the tensor cores: as they are, or as a sum of several
//   OwnParts<E>               rows multiplied by rows: float32 as two float16 under a power of two, 16 bits as they are
//   BfloatParts<E>            rows multiplied by float32 matrices of any range: everything as bfloat16, float16 as two
//   with_element              from an Element to a type E; with_precision also to the number of parts of float32;
//                             with_bases from K to a multiple of 16
//   Tile<P, ROWS, COLUMNS>    in shared memory, row by row, one part after the other
//   Fetch<E, P, R, C, T>      rows from global memory into a Tile: start, copies_wait, finish, barrier
//   Piece<E>                  16 bytes of rows in registers
//   put                       two float32 numbers into a Tile, split as it asks for
//   load_left, load_right     fragments of a Tile, 16x16, for either direction of the depth
//   left_of_sums              sums of one product as the left fragment of the next, without shared memory
//   multiply                  sums += left·right: 1 product of parts, 2, 3, or 6
//   multiply_tiles            the same for all fragments of a warp: sums[16·M, 8·N] += left·right over 16 of depth
//   each_step                 the loop over steps of depth, with tiles on their way while others are multiplied
//   flush                     moves the tensor cores' sums into float32 ones
//
// A product's depth runs along the columns of a tile (x·yᵀ of rows x and y) or along its rows (xᵀ·y); each operand says
// which. Sums are laid out as the PTX ISA says: sums[i] of a 16x8 fragment is at sum_row(i), sum_column(i).
#pragma once

#include <stdexcept>
#include <type_traits>

#include "cuda/tile/number.cuh"
#include "kernels.h"

namespace emcl {
namespace {

// ---- numbers --------------------------------------------------------------------------------------------------------

template <class NUMBER, int COUNT>
struct Parts {
  using Number = NUMBER;
  static constexpr int count = COUNT;
};

// Of float32, two parts of float16 keep 22 bits where numbers were scaled to its range.
template <class E>
using OwnParts = std::conditional_t<std::is_same_v<E, float>, Parts<Float16, 2>, Parts<E, 1>>;

// Of float32, two parts of bfloat16 keep 16 bits and three keep all. float16 rows are split without loss, and the
// matrix may be larger or smaller than float16 can hold.
template <class E, int COUNT = 2>
using BfloatParts = Parts<BFloat16, std::is_same_v<E, float>     ? COUNT
                                    : std::is_same_v<E, Float16> ? 2
                                                                 : 1>;

// f(E{}) for the type of the rows.
template <class F>
void with_element(Element element, const F& f) {
  switch (element) {
    case Element::float32:
      return f(float{});
    case Element::bfloat16:
      return f(BFloat16{});
    case Element::float16:
      return f(Float16{});
    case Element::float64:
      break;
  }
  throw std::invalid_argument("emcl: the CUDA kernels take float32, bfloat16 and float16 rows");
}

// f(E{}, number of parts of float32). The errors of two parts, up to 2^-17 of a number, average out where there are
// many numbers; for few, three parts cost next to nothing.
template <class F>
void with_precision(Element element, const Rows& shape, const F& f) {
  with_element(element, [&](auto zero) {
    if constexpr (std::is_same_v<decltype(zero), float>)
      if (shape.width < 16 || shape.problems * shape.rows * shape.width <= 1 << 16)
        return f(zero, std::integral_constant<int, 3>{});
    f(zero, std::integral_constant<int, 2>{});
  });
}

// f(number of bases, padded).
template <class F>
void with_bases(int64_t num_bases, const F& f) {
  if (num_bases <= 32) return f(std::integral_constant<int, 32>{});
  if (num_bases <= 64) return f(std::integral_constant<int, 64>{});
  if (num_bases <= 128) return f(std::integral_constant<int, 128>{});
  throw std::invalid_argument("emcl: the CUDA kernels take up to 128 num_bases");
}

// Two neighbours in all their parts.
template <class P>
__device__ __forceinline__ void split_pair(float first, float second, uint32_t (&parts)[P::count]) {
  using Number = typename P::Number;
  parts[0] = pack<Number>(first, second);
#pragma unroll
  for (int part = 1; part < P::count; ++part) {
    if constexpr (std::is_same_v<Number, BFloat16>) {
      first -= as_float(parts[part - 1] << 16);
      second -= as_float(parts[part - 1] & 0xffff0000u);
    } else {
      first -= half_to_float(uint16_t(parts[part - 1]));
      second -= half_to_float(uint16_t(parts[part - 1] >> 16));
    }
    parts[part] = pack<Number>(first, second);
  }
}

// Whether rows of this width may be read and written 16 bytes at a time.
template <class E>
__host__ __device__ __forceinline__ bool rows_are_wide(const void* rows, int64_t width) {
  return (reinterpret_cast<uintptr_t>(rows) | uintptr_t(width) * sizeof(E)) % 16 == 0;
}

// 16 bytes of rows, in registers.
template <class E>
struct Piece {
  static constexpr int kSize = 16 / sizeof(E);
  uint32_t words[4];

  __device__ __forceinline__ float number(int j) const {
    if constexpr (sizeof(E) == 4) return as_float(words[j]);
    const uint16_t bits = uint16_t(words[j / 2] >> 16 * (j % 2));
    if constexpr (std::is_same_v<E, Float16>) return half_to_float(bits);
    return as_float(uint32_t(bits) << 16);
  }
};
// From and to addresses that are aligned to 16 bytes.
template <class E>
__device__ __forceinline__ Piece<E> load_piece(const E* from) {
  const uint4 all = *reinterpret_cast<const uint4*>(from);
  return {{all.x, all.y, all.z, all.w}};
}
template <class E>
__device__ __forceinline__ void store_piece(E* to, const Piece<E>& piece) {
  *reinterpret_cast<uint4*>(to) = make_uint4(piece.words[0], piece.words[1], piece.words[2], piece.words[3]);
}
// From any address, number by number: the first `count`, zero beyond.
template <class E>
__device__ __forceinline__ Piece<E> gather_piece(const E* from, int count) {
  Piece<E> piece{};
#pragma unroll
  for (int j = 0; j < Piece<E>::kSize; ++j)
    if (j < count) {
      if constexpr (sizeof(E) == 4)
        piece.words[j] = as_bits(from[j]);
      else
        piece.words[j / 2] |= uint32_t(from[j].bits) << 16 * (j % 2);
    }
  return piece;
}

// The first `count` of a piece's numbers to rows at `to`, which is aligned to 16 bytes where `wide`.
template <class E>
__device__ __forceinline__ void write_numbers(E* to, const float (&numbers)[Piece<E>::kSize], int count, bool wide) {
  if (wide) {
    Piece<E> piece;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(E) == 4)
        piece.words[i] = as_bits(numbers[i]);
      else
        piece.words[i] = pack<E>(numbers[2 * i], numbers[2 * i + 1]);
    }
    if (count > 0) store_piece(to, piece);
  } else {
    for (int j = 0; j < Piece<E>::kSize; ++j)
      if (j < count) to[j] = narrow<E>(numbers[j]);
  }
}

// ---- tiles ----------------------------------------------------------------------------------------------------------

// The pitch is an odd number of 16 bytes, so that eight rows below each other lie in different banks.
template <class P, int ROWS, int COLUMNS>
struct Tile {
  static_assert(COLUMNS % 16 == 0);
  using Numbers = P;
  static constexpr int kPitch = COLUMNS + 8, kPart = ROWS * kPitch, kBytes = P::count * kPart * 2;

  uint16_t* memory;  // aligned to 16 bytes

  __device__ __forceinline__ explicit Tile(void* at) : memory(static_cast<uint16_t*>(at)) {}
  __device__ __forceinline__ uint16_t* at(int part, int row, int column) const {
    return memory + part * kPart + row * kPitch + column;
  }
};

// Into columns `column` and `column + 1`; column is even.
template <class T>
__device__ __forceinline__ void put(const T& tile, int row, int column, float first, float second) {
  uint32_t parts[T::Numbers::count];
  split_pair<typename T::Numbers>(first, second, parts);
  for (int part = 0; part < T::Numbers::count; ++part) memcpy(tile.at(part, row, column), &parts[part], 4);
}

// Rows on their way into a tile. Each of THREADS threads brings the same pieces of 16 bytes every time: those in column
// `own_column()`, in rows own_row(), own_row() + kRowStep, ...
template <class E, class P, int ROWS, int COLUMNS, int THREADS>
struct Fetch {
  using Target = Tile<P, ROWS, COLUMNS>;
  static constexpr bool kConverts = !std::is_same_v<P, Parts<E, 1>>;
  static constexpr int kBytes = kConverts ? ROWS * COLUMNS * int(sizeof(E)) : Target::kBytes;
  static constexpr int kPiece = Piece<E>::kSize, kPerRow = COLUMNS / kPiece, kRowStep = THREADS / kPerRow;
  // A number known to the compiler, so that loops over a thread's pieces are unrolled; a last step may lie beyond ROWS.
  static constexpr int kSteps = (ROWS + kRowStep - 1) / kRowStep;
  static_assert(COLUMNS % kPiece == 0 && THREADS % kPerRow == 0);

  static __device__ __forceinline__ int own_row() { return int(threadIdx.x) / kPerRow; }
  static __device__ __forceinline__ int own_column() { return int(threadIdx.x) % kPerRow * kPiece; }

  // The first `rows` rows and `columns` columns of `from`, rows of `stride` elements; zero beyond them. `wide`: see
  // rows_are_wide. To be followed by copies_commit.
  static __device__ __forceinline__ void start(void* raw, const E* from, int64_t stride, int64_t rows, int64_t columns,
                                               bool wide) {
    const int last_row = rows < ROWS ? int(rows) : ROWS;
    const int left = (columns < COLUMNS ? int(columns) : COLUMNS) - own_column();
    const E* piece = from + own_row() * stride + own_column();
    if (wide) {
      each_row([&](int step, int row) {
        copy_async(place(raw, row, own_column()), piece + step * kRowStep * stride, row < last_row && left > 0);
      });
      return;
    }
#pragma unroll 1
    for (int row = own_row(); row < ROWS; row += kRowStep, piece += kRowStep * stride)
      store_piece(place(raw, row, own_column()), gather_piece(piece, row < last_row ? left : 0));
  }

  // After copies_wait: this thread's pieces become part of the tile, which is complete after a barrier.
  static __device__ __forceinline__ void finish(void* raw, const Target& tile) {
    if constexpr (kConverts) {
      each_piece(raw, [&](int row, const Piece<E>& piece) {
        uint32_t parts[kPiece / 2][P::count];
#pragma unroll
        for (int j = 0; j < kPiece / 2; ++j) split_pair<P>(piece.number(2 * j), piece.number(2 * j + 1), parts[j]);
        store(tile, row, parts);
      });
    }
  }

  // A piece of the tile in all its parts, each two neighbours in one word.
  static __device__ __forceinline__ void store(const Target& tile, int row,
                                               const uint32_t (&parts)[kPiece / 2][P::count]) {
#pragma unroll
    for (int part = 0; part < P::count; ++part) {
      uint16_t* to = tile.at(part, row, own_column());
      if constexpr (kPiece == 4)
        *reinterpret_cast<uint2*>(to) = make_uint2(parts[0][part], parts[1][part]);
      else
        *reinterpret_cast<uint4*>(to) = make_uint4(parts[0][part], parts[1][part], parts[2][part], parts[3][part]);
    }
  }

  // f(row, piece) for this thread's pieces, after copies_wait.
  template <class F>
  static __device__ __forceinline__ void each_piece(void* raw, const F& f) {
    each_row([&](int, int row) { f(row, load_piece(place(raw, row, own_column()))); });
  }

  // The same for what `start` fetches with these arguments, from where it lies.
  template <class F>
  static __device__ __forceinline__ void each_piece_at(const E* from, int64_t stride, int64_t rows, int64_t columns,
                                                       bool wide, const F& f) {
    const int last_row = rows < ROWS ? int(rows) : ROWS;
    const int left = (columns < COLUMNS ? int(columns) : COLUMNS) - own_column();
    const E* piece = from + own_row() * stride + own_column();
#pragma unroll 1
    for (int row = own_row(); row < ROWS; row += kRowStep, piece += kRowStep * stride) {
      const int count = row < last_row ? left : 0;
      f(row, wide && count > 0 ? load_piece(piece) : gather_piece(piece, count));
    }
  }

 private:
  // f(step, row) for this thread's rows.
  template <class F>
  static __device__ __forceinline__ void each_row(const F& f) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int row = own_row() + step * kRowStep;
      if (ROWS % kRowStep == 0 || row < ROWS) f(step, row);
    }
  }

  static __device__ __forceinline__ E* place(void* raw, int row, int column) {
    return static_cast<E*>(raw) + (kConverts ? row * COLUMNS + column : row * Target::kPitch + column);
  }
};

// ---- fragments ------------------------------------------------------------------------------------------------------

// Where a tile's depth runs.
enum class Depth { columns, rows };

template <class P>
struct Left {  // [16, 16 of depth]
  using Numbers = P;
  uint32_t part[P::count][4];
};
template <class P>
struct Right {  // [16 of depth, 16], as two of eight columns
  using Numbers = P;
  uint32_t part[P::count][2][2];
};

__device__ __forceinline__ int lane_of() { return int(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_of() { return int(threadIdx.x) / 32; }
__device__ __forceinline__ int sum_row(int i) { return lane_of() / 4 + i / 2 * 8; }
__device__ __forceinline__ int sum_column(int i) { return lane_of() % 4 * 2 + i % 2; }

// Rows `row` to row + 15 of the product.
template <Depth DEPTH, class T>
__device__ __forceinline__ Left<typename T::Numbers> load_left(const T& tile, int row, int depth) {
  Left<typename T::Numbers> left;
  const int lane = lane_of();
#pragma unroll
  for (int part = 0; part < T::Numbers::count; ++part)
    if constexpr (DEPTH == Depth::columns)
      load_matrices(left.part[part], tile.at(part, row + lane % 16, depth + lane / 16 * 8));
    else
      load_matrices_transposed(left.part[part],
                               tile.at(part, depth + lane / 16 * 8 + lane % 8, row + lane / 8 % 2 * 8));
  return left;
}

// Columns `column` to column + 15 of the product.
template <Depth DEPTH, class T>
__device__ __forceinline__ Right<typename T::Numbers> load_right(const T& tile, int column, int depth) {
  Right<typename T::Numbers> right;
  const int lane = lane_of();
#pragma unroll
  for (int part = 0; part < T::Numbers::count; ++part) {
    uint32_t both[4];
    if constexpr (DEPTH == Depth::columns)
      load_matrices(both, tile.at(part, column + lane / 16 * 8 + lane % 8, depth + lane / 8 % 2 * 8));
    else
      load_matrices_transposed(both, tile.at(part, depth + lane % 16, column + lane / 16 * 8));
#pragma unroll
    for (int i = 0; i < 4; ++i) right.part[part][i / 2][i % 2] = both[i];
  }
  return right;
}

// Sums [16, 16], as two of eight columns, are the left fragment of a product whose depth they span.
template <class P>
__device__ __forceinline__ Left<P> left_of_sums(const float (&first)[4], const float (&second)[4]) {
  Left<P> left;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float (&from)[4] = i < 2 ? first : second;
    uint32_t parts[P::count];
    split_pair<P>(from[i % 2 * 2], from[i % 2 * 2 + 1], parts);
#pragma unroll
    for (int part = 0; part < P::count; ++part) left.part[part][i] = parts[part];
  }
  return left;
}

// ---- products -------------------------------------------------------------------------------------------------------

template <class Number>
__device__ __forceinline__ void multiply_parts(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<Number, BFloat16>)
    multiply_bfloat(sums, a, b);
  else
    multiply_half(sums, a, b);
}

// sums[16, 8] += left·right, columns 8·half to 8·half + 7 of right. Smallest first, without products of two parts that
// are too small to count.
template <class A, class B>
__device__ __forceinline__ void multiply(float (&sums)[4], const Left<A>& left, const Right<B>& right, int half) {
  using Number = typename A::Number;
  static_assert(std::is_same_v<Number, typename B::Number>);
#pragma unroll
  for (int both = (A::count > B::count ? A::count : B::count) - 1; both >= 0; --both)
#pragma unroll
    for (int part = both; part >= 0; --part)
      if (part < A::count && both - part < B::count)
        multiply_parts<Number>(sums, left.part[part], right.part[both - part][half]);
}

// sums[16·M, 8·N] += left[row to row + 16·M, 16 of depth]·right[16 of depth, column to column + 8·N]
template <Depth LEFT, Depth RIGHT, class A, class B, int M, int N>
__device__ __forceinline__ void multiply_tiles(float (&sums)[M][N][4], const A& left, int row, const B& right,
                                               int column, int left_depth, int right_depth) {
  static_assert(N % 2 == 0);
  Left<typename A::Numbers> lefts[M];
#pragma unroll
  for (int m = 0; m < M; ++m) lefts[m] = load_left<LEFT>(left, row + 16 * m, left_depth);
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    const auto both = load_right<RIGHT>(right, column + 8 * n, right_depth);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      multiply(sums[m][n], lefts[m], both, 0);
      multiply(sums[m][n + 1], lefts[m], both, 1);
    }
  }
}

// Calls start(s) for each of `steps` steps ahead of its turn, and in its turn finish(s), a barrier, and multiply(s).
//
// `start` fetches into slot s % STAGES. PRIVATE: `finish` moves all that this thread fetched into tiles, of which there
// are two, s % 2, so that a slot is free again at once and STAGES fetches are on their way. Otherwise `multiply` may
// read the slot itself, and there is one less.
template <int STAGES, bool PRIVATE, class Start, class Finish, class Multiply>
__device__ __forceinline__ void each_step(int steps, const Start& start, const Finish& finish,
                                          const Multiply& multiply) {
  constexpr int kAhead = PRIVATE ? STAGES : STAGES - 1;
  static_assert(kAhead >= 1);
  for (int s = 0; s < kAhead; ++s) {
    if (s < steps) start(s);
    copies_commit();
  }
  for (int s = 0; s < steps; ++s) {
    copies_wait<kAhead - 1>();
    finish(s);
    if constexpr (!PRIVATE) __syncthreads();
    if (s + kAhead < steps) start(s + kAhead);
    copies_commit();
    if constexpr (PRIVATE) __syncthreads();
    multiply(s);
  }
}

// The tensor cores round their sums towards zero. This much depth at most before they are added to others in float32:
// a sum of numbers of one sign is then short by 1e-6 of itself, whatever the depth.
template <class P>
constexpr int kFlushDepth = P::count > 1 ? 128 : 512;

template <int M, int N>
__device__ __forceinline__ void flush(float (&total)[M][N][4], float (&sums)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        total[m][n][i] += sums[m][n][i];
        sums[m][n][i] = 0;
      }
}

}  // namespace
}  // namespace emcl
