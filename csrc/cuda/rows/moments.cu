// (G) gram = xᵀx and colsum = xᵀ1 in one pass over the rows, and their backward.
#include "cuda/rows/powers.cuh"
#include "cuda/tile/splits.h"
#include "cuda/tile/tile.cuh"

namespace emcl {
namespace {

constexpr int kTile = 128, kThreads = 256, kWarps = kThreads / 32;
// A warp's part of a tile: 64 rows and 32 columns, as fragments of 16x8.
constexpr int kM = 4, kN = 4;
__device__ __forceinline__ int warp_row() { return warp_of() / 4 * 64; }
__device__ __forceinline__ int warp_column() { return warp_of() % 4 * 32; }

// Tiles of kTile channels, those on or above the diagonal, each in several parts of the rows.
struct GramPlan {
  int64_t tiles, pairs, splits, rows_per_split;
};

GramPlan plan_gram(const Rows& shape) {
  const int64_t tiles = divide_up(shape.width, kTile), pairs = tiles * (tiles + 1) / 2;
  const Splits splits = split_rows(shape.problems * pairs, shape.rows, 128, 256);
  return {tiles, pairs, splits.count, splits.rows};
}

// The index-th pair of tiles on or above the diagonal, counted row by row.
struct Pair {
  int row, column;
};
__device__ __forceinline__ Pair pair_of(int64_t index, int64_t tiles) {
  int64_t row = 0;
  for (; index >= tiles - row; ++row) index -= tiles - row;
  return {int(row), int(row + index)};
}

// The upper half of one fragment's sums, at (row, column) of gram, and its mirror image.
__device__ __forceinline__ void write_both_halves(float* gram, int64_t width, int64_t row, int64_t column,
                                                  const float (&sums)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const int64_t r = row + sum_row(i), c = column + sum_column(i);
    if (width % 2 == 0 && r <= c && c < width) {
      *reinterpret_cast<float2*>(gram + r * width + c) = make_float2(sums[i], sums[i + 1]);
    } else {
      if (r <= c && c < width) gram[r * width + c] = sums[i];
      if (r <= c + 1 && c + 1 < width) gram[r * width + c + 1] = sums[i + 1];
    }
    if (r < c && c < width) gram[c * width + r] = sums[i];
    if (r < c + 1 && c + 1 < width) gram[(c + 1) * width + r] = sums[i + 1];
  }
}

template <class E>
struct GramTile {
  using Numbers = OwnParts<E>;
  static constexpr int kRows = Numbers::count == 1 ? 64 : 32;  // of a step
  using Rows = Fetch<E, Numbers, kRows, kTile, kThreads>;
  static constexpr int kStages = Rows::kConverts ? 2 : 4;
  static constexpr int kSlots = kStages * 2 * Rows::kBytes;
  static constexpr int kTiles = Rows::kConverts ? 4 * Rows::Target::kBytes : 0;
  // A pair's three products are three sums that are rounded towards zero. Rows of one sign would be short by as much as
  // float32 is wrong by, if more than a step were added up so.
  static constexpr int kFlush = Numbers::count == 1 ? kFlushDepth<Numbers> : kRows;
  static constexpr int kShared = kSlots + kTiles + (Rows::kConverts ? kPowerBytes<kThreads> : 0);
  static_assert(kShared <= kNeededShared);
};

// One block for each pair of tiles and each split: the split's sum for that pair, and for pairs on the diagonal the
// column sums. With one split they are written as they are, otherwise for `add_splits`.
template <class E>
__global__ void __launch_bounds__(kThreads, 1)
    gram_tiles(const E* x, Rows shape, GramPlan plan, bool wide, float* gram, float* colsum,
               float4* parts,        // [P, splits, pairs, kM·kN, kThreads]
               float* colsum_parts)  // [P, splits, D]
{
  using G = GramTile<E>;
  using Fetched = typename G::Rows;
  using Target = typename Fetched::Target;
  const int64_t width = shape.width, block = blockIdx.x;
  const auto [left, right] = pair_of(block % plan.pairs, plan.tiles);
  const int64_t part = block / plan.pairs, problem = part / plan.splits;
  const int64_t first = part % plan.splits * plan.rows_per_split;
  const int64_t rows = shape.rows - first < plan.rows_per_split ? shape.rows - first : plan.rows_per_split;
  const bool diagonal = left == right;
  x += (problem * shape.rows + first) * width;

  char* memory = dynamic_shared();
  const auto slot = [&](int step, int side) { return memory + (step % G::kStages * 2 + side) * Fetched::kBytes; };
  const auto tile = [&](int step, int side) {
    return Target(Fetched::kConverts ? memory + G::kSlots + (step % 2 * 2 + side) * Target::kBytes : slot(step, side));
  };

  // f(where a step's rows of a side start, and the other arguments of Fetch::start)
  const auto with_rows = [&](int step, int side, const auto& f) {
    const int64_t row = int64_t(step) * G::kRows, column = (side == 0 ? left : right) * kTile;
    f(x + row * width + column, width, rows - row, width - column, wide);
  };

  float total[kM][kN][4] = {}, sums[kM][kN][4] = {}, column_sums[Fetched::kPiece] = {};
  const int steps = int(divide_up(rows, G::kRows));
  const auto start = [&](int step) {
    with_rows(step, 0, [&](auto... rest) { Fetched::start(slot(step, 0), rest...); });
    if (!diagonal) with_rows(step, 1, [&](auto... rest) { Fetched::start(slot(step, 1), rest...); });
  };
  const auto add_columns = [&](int step) {
    if (diagonal)
      Fetched::each_piece(slot(step, 0), [&](int, const Piece<E>& piece) {
        for (int j = 0; j < Fetched::kPiece; ++j) column_sums[j] += piece.number(j);
      });
  };
  const auto multiply = [&](int step) {
    const Target a = tile(step, 0), b = tile(step, diagonal ? 0 : 1);
#pragma unroll
    for (int depth = 0; depth < G::kRows; depth += 16)
      multiply_tiles<Depth::rows, Depth::rows>(sums, a, warp_row(), b, warp_column(), depth, depth);
    if ((step + 1) % (G::kFlush / G::kRows) == 0) flush(total, sums);
  };

  if constexpr (Fetched::kConverts) {
    const Powers<Fetched, kTile, kThreads> powers(memory + G::kSlots + G::kTiles, diagonal);
    const auto fetched = [&](int step) {
      return [&, step](int side, const auto& f) { Fetched::each_piece(slot(step, side), f); };
    };
    // Once more, because slots are filled anew as soon as they were converted.
    const auto in_memory = [&](int step) {
      return [&, step](int side, const auto& f) {
        with_rows(step, side, [&](auto... rest) { Fetched::each_piece_at(rest..., f); });
      };
    };
    const auto tiles = [&](int step) { return [&, step](int side) { return tile(step, side); }; };
    each_step<G::kStages, true>(
        steps, start,
        [&](int step) {
          if (step == 0) powers.choose(tiles(0), fetched(0));
          powers.convert(step, tiles(step), fetched(step));
          add_columns(step);
        },
        [&](int step) {
          if (powers.missed(step)) {
            flush(total, sums);
            powers.choose(tiles(step), in_memory(step));
            powers.rescale(total, warp_row(), warp_column());
            powers.convert(step, tiles(step), in_memory(step));
            __syncthreads();
          }
          multiply(step);
        });
    flush(total, sums);
    powers.unscale(total, warp_row(), warp_column());
  } else {
    each_step<G::kStages, false>(steps, start, add_columns, multiply);
    flush(total, sums);
  }

#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const float (&own)[4] = total[m][n];
      if (plan.splits == 1)
        write_both_halves(gram + problem * width * width, width, left * kTile + warp_row() + 16 * m,
                          right * kTile + warp_column() + 8 * n, own);
      else
        parts[(block * kM * kN + m * kN + n) * kThreads + threadIdx.x] = make_float4(own[0], own[1], own[2], own[3]);
    }

  if (!diagonal) return;
  float* lines = reinterpret_cast<float*>(memory);  // [kRowStep, kTile]
  __syncthreads();
  for (int j = 0; j < Fetched::kPiece; ++j)
    lines[Fetched::own_row() * kTile + Fetched::own_column() + j] = column_sums[j];
  __syncthreads();
  const int64_t channel = left * kTile + threadIdx.x;
  if (threadIdx.x < kTile && channel < width) {
    float sum = 0;
    for (int line = 0; line < Fetched::kRowStep; ++line) sum += lines[line * kTile + threadIdx.x];
    (plan.splits == 1 ? colsum : colsum_parts)[part * width + channel] = sum;
  }
}

// One block for each fragment of every warp of a pair: adds up the splits in their order.
__global__ void __launch_bounds__(kThreads)
    add_splits(const float4* parts, const float* colsum_parts, Rows shape, GramPlan plan, float* gram, float* colsum) {
  const int fragment = blockIdx.x % (kM * kN);
  const int64_t pair = blockIdx.x / (kM * kN) % plan.pairs, problem = blockIdx.x / (kM * kN) / plan.pairs;
  const int64_t width = shape.width, first = problem * plan.splits;
  const auto [left, right] = pair_of(pair, plan.tiles);
  float total[4] = {};
#pragma unroll 4
  for (int64_t part = first; part < first + plan.splits; ++part) {
    const float4 own = parts[((part * plan.pairs + pair) * kM * kN + fragment) * kThreads + threadIdx.x];
    total[0] += own.x;
    total[1] += own.y;
    total[2] += own.z;
    total[3] += own.w;
  }
  write_both_halves(gram + problem * width * width, width, left * kTile + warp_row() + 16 * (fragment / kN),
                    right * kTile + warp_column() + 8 * (fragment % kN), total);

  const int64_t channel = left * kTile + threadIdx.x;
  if (left != right || fragment != 0 || threadIdx.x >= kTile || channel >= width) return;
  float sum = 0;
  for (int64_t part = first; part < first + plan.splits; ++part) sum += colsum_parts[part * width + channel];
  colsum[problem * width + channel] = sum;
}

// ---- backward -------------------------------------------------------------------------------------------------------

// Rows of h in memory, of whole pieces.
__host__ __device__ constexpr int64_t pitch_of(int64_t width) { return divide_up(width, 8) * 8; }

// h [P, parts, D, pitch] = d_gram + d_gramᵀ in bfloat16 parts.
template <class P>
__global__ void __launch_bounds__(kThreads) symmetric_parts(const float* d_gram, int64_t width, BFloat16* h) {
  constexpr int kSide = 32;
  float* mirrored = reinterpret_cast<float*>(dynamic_shared());  // [kSide, kSide + 1]
  const int64_t pitch = pitch_of(width), tiles = divide_up(pitch, kSide), problem = blockIdx.x / (tiles * tiles);
  const int64_t row = blockIdx.x / tiles % tiles * kSide, column = blockIdx.x % tiles * kSide;
  d_gram += problem * width * width;
  h += problem * P::count * width * pitch;
  const int own = threadIdx.x % kSide, line = threadIdx.x / kSide;
  for (int i = line; i < kSide; i += kThreads / kSide)
    if (column + i < width && row + own < width)
      mirrored[i * (kSide + 1) + own] = d_gram[(column + i) * width + row + own];
  __syncthreads();
  for (int i = line; i < kSide; i += kThreads / kSide) {
    const int64_t r = row + i, c = column + own;
    if (r >= width || c >= pitch) continue;
    uint32_t parts[P::count];
    split_pair<P>(c < width ? d_gram[r * width + c] + mirrored[own * (kSide + 1) + i] : 0.0f, 0.0f, parts);
    for (int part = 0; part < P::count; ++part) h[(part * width + r) * pitch + c] = {uint16_t(parts[part])};
  }
}

template <class E, int COUNT>
struct BackwardTile {
  using Numbers = BfloatParts<E, COUNT>;
  static constexpr int kChannels = Numbers::count == 1 ? 64 : Numbers::count == 2 ? 32 : 16;  // of a step
  using Rows = Fetch<E, Numbers, kTile, kChannels, kThreads>;
  using Matrix = Tile<Numbers, kChannels, kTile>;
  using MatrixPart = Fetch<BFloat16, Parts<BFloat16, 1>, kChannels, kTile, kThreads>;
  static constexpr int kStages = 3;
  static constexpr int kSlot = Rows::kBytes + Matrix::kBytes;
  static constexpr int kShared = kStages * kSlot + (Rows::kConverts ? 2 * Rows::Target::kBytes : 0);
  static constexpr int kLine = 8 * kN + 4;  // of a warp's results on their way out
  static_assert(kWarps * 16 * kLine * 4 <= kShared && kShared <= kNeededShared);
};

// d_x = x·h + 1·d_colsumᵀ, a block for each tile.
template <class E, int COUNT>
__global__ void __launch_bounds__(kThreads, 1)
    multiply_symmetric(const E* x, const BFloat16* h, const float* d_colsum, Rows shape, bool wide, E* d_x) {
  using B = BackwardTile<E, COUNT>;
  using Fetched = typename B::Rows;
  using Target = typename Fetched::Target;
  const int64_t width = shape.width, pitch = pitch_of(width);
  const int64_t column_tiles = divide_up(width, kTile), row_tiles = divide_up(shape.rows, kTile);
  const int64_t column = blockIdx.x % column_tiles * kTile, row = blockIdx.x / column_tiles % row_tiles * kTile;
  const int64_t problem = blockIdx.x / column_tiles / row_tiles;
  x += (problem * shape.rows + row) * width;
  d_x += (problem * shape.rows + row) * width;
  h += problem * B::Numbers::count * width * pitch + column;
  d_colsum += problem * width;

  char* memory = dynamic_shared();
  const auto slot = [&](int step) { return memory + step % B::kStages * B::kSlot; };
  const auto tile = [&](int step) {
    return Target(Fetched::kConverts ? memory + B::kStages * B::kSlot + step % 2 * Target::kBytes : slot(step));
  };
  const auto matrix = [&](int step) { return typename B::Matrix(slot(step) + Fetched::kBytes); };

  float total[kM][kN][4] = {}, sums[kM][kN][4] = {};
  each_step<B::kStages, false>(
      int(divide_up(width, B::kChannels)),
      [&](int step) {
        const int64_t channel = int64_t(step) * B::kChannels;
        Fetched::start(slot(step), x + channel, width, shape.rows - row, width - channel, wide);
        for (int part = 0; part < B::Numbers::count; ++part)
          B::MatrixPart::start(matrix(step).at(part, 0, 0), h + (part * width + channel) * pitch, pitch,
                               width - channel, pitch - column, true);
      },
      [&](int step) { Fetched::finish(slot(step), tile(step)); },
      [&](int step) {
#pragma unroll
        for (int depth = 0; depth < B::kChannels; depth += 16)
          multiply_tiles<Depth::columns, Depth::rows>(sums, tile(step), warp_row(), matrix(step), warp_column(), depth,
                                                      depth);
        if ((step + 1) % (kFlushDepth<typename B::Numbers> / B::kChannels) == 0) flush(total, sums);
      });
  flush(total, sums);

  // Through shared memory, so that rows are written 16 bytes at a time.
  __syncthreads();
  float* lines = reinterpret_cast<float*>(memory) + warp_of() * 16 * B::kLine;
  constexpr int kPiece = Piece<E>::kSize, kPerRow = 8 * kN / kPiece;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; i += 2)
        *reinterpret_cast<float2*>(lines + sum_row(i) * B::kLine + 8 * n + sum_column(i)) =
            make_float2(total[m][n][i], total[m][n][i + 1]);
    __syncwarp();
    for (int i = lane_of(); i < 16 * kPerRow; i += 32) {
      const int line = i / kPerRow, own = i % kPerRow * kPiece;
      const int64_t r = warp_row() + 16 * m + line, c = column + warp_column() + own;
      if (row + r >= shape.rows) continue;
      float numbers[kPiece];
      for (int j = 0; j < kPiece; ++j)
        numbers[j] = lines[line * B::kLine + own + j] + (c + j < width ? d_colsum[c + j] : 0.0f);
      write_numbers(d_x + r * width + c, numbers, int(width - c), wide);
    }
    __syncwarp();
  }
}

}  // namespace

void moments(const Call& call, Element element, const void* x, Rows shape, float* gram, float* colsum) {
  const GramPlan plan = plan_gram(shape);
  float4* parts = nullptr;
  float* colsum_parts = nullptr;
  if (plan.splits > 1) {
    const int64_t count = shape.problems * plan.splits;
    parts = static_cast<float4*>(call.workspace(size_t(count * plan.pairs * kM * kN * kThreads) * sizeof(float4)));
    colsum_parts = static_cast<float*>(call.workspace(size_t(count * shape.width) * sizeof(float)));
  }
  with_element(element, [&](auto zero) {
    using E = decltype(zero);
    using G = GramTile<E>;
    Launch launched{unsigned(shape.problems * plan.splits * plan.pairs)};
    launched.threads = kThreads;
    launched.shared = G::kShared;
    launch(call.stream, launched, gram_tiles<E>, static_cast<const E*>(x), shape, plan,
           rows_are_wide<E>(x, shape.width), gram, colsum, parts, colsum_parts);
  });
  if (plan.splits == 1) return;
  Launch added{unsigned(shape.problems * plan.pairs * kM * kN)};
  added.threads = kThreads;
  launch(call.stream, added, add_splits, static_cast<const float4*>(parts), static_cast<const float*>(colsum_parts),
         shape, plan, gram, colsum);
}

void moments_backward(const Call& call, Element element, const void* x, const float* d_gram, const float* d_colsum,
                      Rows shape, void* d_x) {
  with_precision(element, shape, [&](auto zero, auto count) {
    using E = decltype(zero);
    using B = BackwardTile<E, count>;
    const int64_t pitch = pitch_of(shape.width), sides = divide_up(pitch, 32);
    const size_t bytes = size_t(shape.problems * B::Numbers::count * shape.width * pitch) * sizeof(BFloat16);
    auto* h = static_cast<BFloat16*>(call.workspace(bytes));
    Launch split{unsigned(shape.problems * sides * sides)};
    split.threads = kThreads;
    split.shared = 32 * 33 * sizeof(float);
    launch(call.stream, split, symmetric_parts<typename B::Numbers>, d_gram, shape.width, h);

    Launch multiplied{unsigned(shape.problems * divide_up(shape.rows, kTile) * divide_up(shape.width, kTile))};
    multiplied.threads = kThreads;
    multiplied.shared = B::kShared;
    const bool wide = rows_are_wide<E>(x, shape.width) && rows_are_wide<E>(d_x, shape.width);
    launch(call.stream, multiplied, multiply_symmetric<E, count>, static_cast<const E*>(x),
           static_cast<const BFloat16*>(h), d_colsum, shape, wide, static_cast<E*>(d_x));
  });
}

}  // namespace emcl
