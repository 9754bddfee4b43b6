// Small square matrices, one for each video: inner products of its frames, and their products with its frames.
//
// The videos of a group are the blocks on the diagonal of one matrix [64, 64], zero elsewhere.
#include "cuda/pooled/pooled_weights.cuh"

namespace emcl {
namespace pooled {
namespace {

// Which rows the columns of a block's group are: in the rows of all frames, and among those of its problem.
struct GroupRows {
  Group group;
  int first;
};
__device__ __forceinline__ GroupRows rows_of(const Problems& p, int local, int group) {
  const Range videos = videos_of(p, local);
  return {group_of(p.frames, videos, group), videos.first * p.frames.count};
}

// What lies on the diagonal of a group's products, if it is more than what is there.
template <class P>
__device__ __forceinline__ void keep_squares(const float (&sums)[1][8][4], bool first, float* squares) {
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = P::warp_m() * 16 + sum_row(i);
      if (row == own_column(n, i)) squares[row] = first ? sums[0][n][i] : fmaxf(squares[row], sums[0][n][i]);
    }
}

template <class P, class C>
__global__ void __launch_bounds__(P::kThreads, 1) inner_kernel(const Problems problems, const InnerProducts p) {
  const int local = int(blockIdx.y), groups = problems.groups();
  const auto [group, first] = rows_of(problems, local, int(blockIdx.x));
  float sums[1][8][4] = {};
  const auto row = [&](int column) {
    const int own = group.row(column);
    return own < 0 ? own : first + own;
  };
  P::template run<true>(dynamic_shared(), sums, Operand{p.left, row}, Operand{p.frames, row}, p.width);
  float* squares = p.squares == nullptr ? nullptr : p.squares + (int64_t(local) * groups + blockIdx.x) * kGroup;
  if (squares != nullptr) keep_squares<P>(sums, true, squares);
  if (p.num_bases > 0) {
    const int first_mapped = local * problems.frame_rows();
    const auto mapped_row = [&](int column) {
      const int own = group.row(column);
      return own < 0 ? own : first_mapped + own;
    };
    C::template run<true>(dynamic_shared(), sums, Operand{p.mapped, mapped_row},
                          Operand{p.mapped.from_column(p.num_bases), mapped_row}, p.num_bases);
    if (squares != nullptr) keep_squares<P>(sums, false, squares);
  }
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = P::warp_m() * 16 + sum_row(2 * half), j = own_column(n, 0);
      const bool same = group.video(i) == group.video(j);
      store_pair<typename C::LeftParts>(p.out, (int64_t(local) * groups + blockIdx.x) * kGroup + i, j,
                                        same ? sums[0][n][2 * half] : 0.0f, same ? sums[0][n][2 * half + 1] : 0.0f);
    }
}

template <class R>
using SquareProduct = TileProduct<Exact, Depth::columns, R, Depth::rows, 1, 4, 2, 2>;

template <class P>
__global__ void __launch_bounds__(P::kThreads, 1) square_kernel(const Problems problems, const SquareTimes p) {
  const int local = int(blockIdx.y), groups = problems.groups();
  const int own_group = int(blockIdx.x) % groups, first_column = int(blockIdx.x) / groups * P::kColumns;
  const auto [group, first] = rows_of(problems, local, own_group);
  float sums[1][8][4] = {};
  const auto square_row = [&](int i) { return (local * groups + own_group) * kGroup + i; };
  const auto row = [&](int column) {
    const int own = group.row(column);
    return own < 0 ? own : first + own;
  };
  P::template run<true>(dynamic_shared(), sums, Operand{p.squares, square_row},
                        Operand{p.rows.from_column(first_column), row, p.columns - first_column}, kGroup);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int own = group.row(P::warp_m() * 16 + sum_row(2 * half));
    if (own < 0) continue;
    const int64_t to = int64_t(local) * p.out_step + own;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int column = first_column + P::warp_n() * kGroup + own_column(n, 0);
      const float one = sums[0][n][2 * half], other = sums[0][n][2 * half + 1];
      if (p.sums != nullptr)
        write_pair(p.sums + to * p.columns, column, p.columns, one, other, p.add);
      else if (column < p.out.stride)
        store_pair<Exact>(p.out, to, column, one, other);
    }
  }
}

__global__ void sum_squares_kernel(const Problems problems, const float* squares, const float* counts, int splits,
                                   Matrix16 out, float* all_counts) {
  const int groups = problems.groups(), local = int(blockIdx.y);
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;  // two neighbours each
  const int own_group = int(index / (kGroup * kGroup / 2));
  const int row = int(index / (kGroup / 2) % kGroup), column = int(index % (kGroup / 2)) * 2;
  if (own_group >= groups) return;
  const Group group = rows_of(problems, local, own_group).group;
  float both[2] = {0, 0}, count = 0;
  for (int split = 0; split < splits; ++split) {
    const int64_t part = ((int64_t(local) * splits + split) * groups + own_group) * kGroup + row;
    if (group.video(row) == group.video(column))
      for (int i = 0; i < 2; ++i) both[i] += squares[(part << problems.frames.padded_log) + group.frame(column) + i];
    count += counts[part];
  }
  store_pair<Exact>(out, (int64_t(local) * groups + own_group) * kGroup + row, column, both[0], both[1]);
  const int own = group.row(row);
  if (column == 0 && own >= 0) all_counts[int64_t(local) * problems.frame_rows() + own] = count;
}

}  // namespace

Matrix16 inner_products(const Call& call, const Problems& problems, InnerProducts p) {
  const int groups = problems.groups();
  p.out = allocate_matrix(call, int64_t(problems.count) * groups * kGroup, kGroup, p.frames.parts == 1 ? 2 : 3);
  const auto run = [&](auto left, auto right) {
    using P = TileProduct<decltype(left), Depth::columns, decltype(right), Depth::columns, 1, 4, 1, 3>;
    using C = BasesTile<P, SmallParts<decltype(right)>>;
    Launch shape{unsigned(groups), unsigned(problems.count)};
    shape.threads = P::kThreads;
    static_assert(std::max(P::kBytes, C::kBytes) <= kNeededShared);
    shape.shared = std::max(P::kBytes, C::kBytes);
    launch(call.stream, shape, inner_kernel<P, C>, problems, p);
  };
  using One = Parts<BFloat16, 1>;
  if (p.frames.parts == 3) {
    run(Exact(), Exact());
  } else if (p.left.parts == 2) {
    run(Split(), One());
  } else {
    run(One(), One());
  }
  return p.out;
}

Squares16 sum_squares(const Call& call, const Problems& problems, const float* squares, const float* counts,
                      int splits) {
  const int groups = problems.groups();
  const Squares16 sum{allocate_matrix(call, int64_t(problems.count) * groups * kGroup, kGroup, Exact::count),
                      allocate<float>(call, int64_t(problems.count) * problems.frame_rows())};
  launch(call.stream, threads_for(int64_t(groups) * kGroup * kGroup / 2, problems.count), sum_squares_kernel, problems,
         squares, counts, splits, sum.squares, sum.counts);
  return sum;
}

void multiply_squares(const Call& call, const Problems& problems, const SquareTimes& p) {
  const auto run = [&](auto right) {
    using P = SquareProduct<decltype(right)>;
    Launch shape{unsigned(problems.groups() * divide_up(p.columns, P::kColumns)), unsigned(problems.count)};
    shape.threads = P::kThreads;
    static_assert(P::kBytes <= kNeededShared);
    shape.shared = P::kBytes;
    launch(call.stream, shape, square_kernel<P>, problems, p);
  };
  if (p.rows.parts == 1) return run(Parts<BFloat16, 1>());
  if (p.rows.parts == 2) return run(Split());
  run(Exact());
}

}  // namespace pooled
}  // namespace emcl
