// Products of whole matrices of packed rows, in tiles of 128 rows by 64 or 128 columns.
#include "cuda/pooled/pooled_weights.cuh"

namespace emcl {
namespace pooled {
namespace {

// Rows of the packed rows that belong to a problem: its frames, then its texts.
struct Selection {
  int first, count, first_text, all;
  __device__ __forceinline__ int row(int i) const {
    return i < count ? first + i : i < all ? first_text + i - count : -1;
  }
};
__device__ __forceinline__ Selection select(const Problems& p, const Product& product, int local) {
  const Range texts = texts_of(p, local), videos = videos_of(p, local);
  const int frames = p.frames.count, first_text = p.videos * frames + texts.first;
  switch (product.left_rows) {
    case RowsOf::frames:
      return {videos.first * frames, videos.count * frames, 0, videos.count * frames};
    case RowsOf::texts:
      return {first_text, texts.count, 0, texts.count};
    case RowsOf::frames_and_texts:
      return {videos.first * frames, videos.count * frames, first_text, videos.count * frames + texts.count};
    default:
      return {local * product.left_step, product.left_step, 0, product.left_step};
  }
}

struct Plan {
  int row_tiles, column_tiles, depth_per_split;
};

template <class P, Depth LEFT>
__global__ void __launch_bounds__(P::kThreads, 1)
    multiply_kernel(const Product p, const Problems problems, const Plan plan) {
  const int local = int(blockIdx.z), split = int(blockIdx.y);
  int row_tile = int(blockIdx.x) / plan.column_tiles, column_tile = int(blockIdx.x) % plan.column_tiles;
  if (p.upper) {
    row_tile = 0;
    column_tile = int(blockIdx.x);
    for (; column_tile >= plan.column_tiles - row_tile; ++row_tile) column_tile -= plan.column_tiles - row_tile;
    column_tile += row_tile;
  }
  const int first_row = row_tile * P::kRows, first_column = column_tile * P::kColumns,
            first = split * plan.depth_per_split;
  const Selection selected = select(problems, p, local);
  const int rows = LEFT == Depth::columns ? selected.all : p.rows;
  const int all = LEFT == Depth::columns ? p.depth : selected.all;
  const int depth = all - first < plan.depth_per_split ? all - first : plan.depth_per_split;
  if (first_row >= rows) return;

  float sums[P::M][8][4] = {};
  const auto left_row = [&](int i) {
    if constexpr (LEFT == Depth::columns) return first_row + i < rows ? selected.row(first_row + i) : -1;
    return selected.row(first + i);
  };
  const auto right_row = [&](int i) { return local * p.right_step + first + i; };
  const Operand left{p.left.from_column(LEFT == Depth::columns ? first : first_row), left_row, rows - first_row};
  const Operand right{p.right.from_column(first_column), right_row, p.columns - first_column};
  P::template run<true>(dynamic_shared(), sums, left, right, depth);

#pragma unroll
  for (int m = 0; m < P::M; ++m)
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + (P::warp_m() * P::M + m) * 16 + sum_row(2 * half);
        const int column = first_column + P::warp_n() * kGroup + 8 * n + sum_column(0);
        if (row >= rows) continue;
        const float first = sums[m][n][2 * half], second = sums[m][n][2 * half + 1];
        if (p.sums == nullptr) {
          if (column < p.out.stride) store_pair(p.out, int64_t(local) * p.rows + row, column, first, second);
        } else {
          const int64_t part = int64_t(local) * p.splits + split;
          write_pair(p.sums + (part * p.rows + row) * p.columns, column, p.columns, first, second, p.add);
        }
      }
}

template <class L, class R, Depth LEFT, int WARPS_N>
void multiply_as(const Call& call, const Problems& problems, const Product& p) {
  using P = TileProduct<L, LEFT, R, Depth::rows, 2, 4, WARPS_N, L::count + R::count == 6 ? 2 : 3>;
  const Plan plan{int(divide_up(p.rows, P::kRows)), int(divide_up(p.columns, P::kColumns)),
                  int(round_up(divide_up(p.depth, p.splits), P::kStep))};
  const int tiles = p.upper ? plan.row_tiles * (plan.row_tiles + 1) / 2 : plan.row_tiles * plan.column_tiles;
  Launch shape{unsigned(tiles), unsigned(p.splits), unsigned(problems.count)};
  shape.threads = P::kThreads;
  static_assert(P::kBytes <= kNeededShared);
  shape.shared = P::kBytes;
  launch(call.stream, shape, multiply_kernel<P, LEFT>, p, problems, plan);
}

}  // namespace

// Every combination of parts that occurs.
void multiply(const Call& call, const Problems& problems, const Product& p) {
  using One = Parts<BFloat16, 1>;
  constexpr Depth kRows = Depth::rows, kColumns = Depth::columns;
  const bool thin = p.columns <= kGroup;
  const auto are = [&](int left, int right) { return p.left.parts == left && p.right.parts == right; };
  if (p.transposed) {
    if (are(1, 3)) return multiply_as<One, Exact, kRows, 2>(call, problems, p);
    if (are(3, 3))
      return thin && !p.upper ? multiply_as<Exact, Exact, kRows, 1>(call, problems, p)
                              : multiply_as<Exact, Exact, kRows, 2>(call, problems, p);
    if (are(2, 1)) return multiply_as<Split, One, kRows, 2>(call, problems, p);
    if (are(2, 2))
      return thin ? multiply_as<Split, Split, kRows, 1>(call, problems, p)
                  : multiply_as<Split, Split, kRows, 2>(call, problems, p);
  } else {
    if (are(1, 2))
      return thin ? multiply_as<One, Split, kColumns, 1>(call, problems, p)
                  : multiply_as<One, Split, kColumns, 2>(call, problems, p);
    if (are(3, 3))
      return thin ? multiply_as<Exact, Exact, kColumns, 1>(call, problems, p)
                  : multiply_as<Exact, Exact, kColumns, 2>(call, problems, p);
    if (are(2, 1)) return multiply_as<Split, One, kColumns, 2>(call, problems, p);
    if (are(2, 2))
      return thin ? multiply_as<Split, Split, kColumns, 1>(call, problems, p)
                  : multiply_as<Split, Split, kColumns, 2>(call, problems, p);
  }
  throw std::logic_error("emcl: no product of matrices in so many parts");
}

}  // namespace pooled
}  // namespace emcl
