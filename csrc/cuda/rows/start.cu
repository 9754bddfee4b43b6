// xᵀ·thin: products of rows with thin float32 matrices, summed over the rows.
#include "cuda/rows/start.h"
#include "cuda/tile/splits.h"
#include "cuda/tile/tile.cuh"

namespace emcl {
namespace {

// A block's share: 128 channels, 16 for each warp, with all bases.
constexpr int kChannels = 128, kThreads = 256;

struct ThinPlan {
  int64_t column_blocks, splits, rows_per_split;
};

ThinPlan plan_thin(const Rows& shape) {
  const int64_t column_blocks = divide_up(shape.width, kChannels);
  const Splits splits = split_rows(shape.problems * column_blocks, shape.rows, 64, 128);
  return {column_blocks, splits.count, splits.rows};
}

// BASES: K, padded. float32 in three parts: large rows may cancel against each other, and there is little to compute.
template <class E, int BASES>
struct ThinTile {
  using RowNumbers = BfloatParts<E, 3>;
  using ThinNumbers = BfloatParts<float, 3>;
  static constexpr int kRows = RowNumbers::count == 1 ? 32 : 16;  // of a step
  using Rows = Fetch<E, RowNumbers, kRows, kChannels, kThreads>;
  using Thin = Fetch<float, ThinNumbers, kRows, BASES, kThreads>;
  static constexpr int kStages = 4;
  static constexpr int kSlot = Rows::kBytes + Thin::kBytes;
  static constexpr int kRowTile = Rows::kConverts ? Rows::Target::kBytes : 0;
  static constexpr int kTiles = kRowTile + Thin::Target::kBytes;
  static constexpr int kShared = kStages * kSlot + 2 * kTiles;
  static_assert(kShared <= kNeededShared);
};

template <class E, int BASES>
__global__ void __launch_bounds__(kThreads, 1)
    sum_thin(const E* x, const float* thin, const E* second_x, const float* second_thin, Rows shape, int num_bases,
             ThinPlan plan, bool wide, float* sums_out)  // [P, splits, D, K]
{
  using T = ThinTile<E, BASES>;
  using RowTile = typename T::Rows::Target;
  using MatrixTile = typename T::Thin::Target;
  constexpr int N = BASES / 8;
  const int64_t column = blockIdx.x % plan.column_blocks * kChannels, part = blockIdx.x / plan.column_blocks;
  const int64_t problem = part / plan.splits, first = part % plan.splits * plan.rows_per_split;
  const int64_t rows = shape.rows - first < plan.rows_per_split ? shape.rows - first : plan.rows_per_split;
  const int64_t row = problem * shape.rows + first;

  char* memory = dynamic_shared();
  const auto slot = [&](int step) { return memory + step % T::kStages * T::kSlot; };
  const auto tiles = [&](int step) { return memory + T::kStages * T::kSlot + step % 2 * T::kTiles; };
  const auto row_tile = [&](int step) { return RowTile(T::Rows::kConverts ? tiles(step) : slot(step)); };
  const auto thin_tile = [&](int step) { return MatrixTile(tiles(step) + T::kRowTile); };

  float total[1][N][4] = {}, sums[1][N][4] = {};
  const int steps = int(divide_up(rows, T::kRows));  // of a pair
  each_step<T::kStages, false>(
      second_x == nullptr ? steps : 2 * steps,
      [&](int step) {
        const bool first_pair = step < steps;
        const int64_t done = int64_t(first_pair ? step : step - steps) * T::kRows;
        T::Rows::start(slot(step), (first_pair ? x : second_x) + (row + done) * shape.width + column, shape.width,
                       rows - done, shape.width - column, wide);
        const float* matrix = first_pair ? thin : second_thin;
        T::Thin::start(slot(step) + T::Rows::kBytes, matrix + (row + done) * num_bases, num_bases, rows - done,
                       num_bases, rows_are_wide<float>(matrix, num_bases));
      },
      [&](int step) {
        T::Rows::finish(slot(step), row_tile(step));
        T::Thin::finish(slot(step) + T::Rows::kBytes, thin_tile(step));
      },
      [&](int step) {
#pragma unroll
        for (int depth = 0; depth < T::kRows; depth += 16)
          multiply_tiles<Depth::rows, Depth::rows>(sums, row_tile(step), 16 * warp_of(), thin_tile(step), 0, depth,
                                                   depth);
        if ((step + 1) % (kFlushDepth<typename T::ThinNumbers> / T::kRows) == 0) flush(total, sums);
      });
  flush(total, sums);

  sums_out += part * shape.width * num_bases;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t channel = column + warp_of() * 16 + sum_row(i);
      const int base = 8 * n + sum_column(i);
      if (channel < shape.width && base < num_bases) sums_out[channel * num_bases + base] = total[0][n][i];
    }
}

__global__ void __launch_bounds__(kThreads) add_parts(const float* parts,  // [P, splits, size]
                                                      int64_t problems, int64_t splits, int64_t size, float* sums) {
  const int64_t own = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (own >= problems * size) return;
  float sum = 0;
#pragma unroll 4
  for (int64_t split = 0; split < splits; ++split) sum += parts[(own / size * splits + split) * size + own % size];
  sums[own] = sum;
}

}  // namespace

void sum_over_rows(const Call& call, Element element, ThinPair first, ThinPair second, Rows shape, int64_t num_bases,
                   float* sums) {
  const ThinPlan plan = plan_thin(shape);
  const int64_t size = shape.width * num_bases;
  float* parts = sums;
  if (plan.splits > 1)
    parts = static_cast<float*>(call.workspace(size_t(shape.problems * plan.splits * size) * sizeof(float)));
  with_element(element, [&](auto zero) {
    using E = decltype(zero);
    with_bases(num_bases, [&](auto padded) {
      Launch summed{unsigned(shape.problems * plan.splits * plan.column_blocks)};
      summed.threads = kThreads;
      summed.shared = ThinTile<E, padded>::kShared;
      launch(call.stream, summed, sum_thin<E, padded>, static_cast<const E*>(first.x), first.thin,
             static_cast<const E*>(second.x), second.thin, shape, int(num_bases), plan,
             rows_are_wide<E>(first.x, shape.width) && rows_are_wide<E>(second.x, shape.width), parts);
    });
  });
  if (plan.splits == 1) return;
  Launch added{unsigned(divide_up(shape.problems * size, kThreads))};
  added.threads = kThreads;
  launch(call.stream, added, add_parts, static_cast<const float*>(parts), shape.problems, plan.splits, size, sums);
}

void start_from_rows(const Call& call, Element element, const void* x, const float* init, Rows shape, int64_t num_bases,
                     float* logits) {
  sum_over_rows(call, element, {x, init}, {nullptr, nullptr}, shape, num_bases, logits);
}

}  // namespace emcl
