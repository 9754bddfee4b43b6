// All iterations of EM in one launch: one cluster of blocks for each problem (docs/math.md, GE and GM).
//
// Every block keeps its rows of the Gram matrix in shared memory for the whole run, and the responsibilities p of the
// same channels. An iteration has two exchanges, with one barrier of the cluster each:
//   - p of all channels: each warp reads that of one block, the source, into the registers it multiplies from;
//   - the column sums of p and its squared lengths: each block writes its share into all others, which add them in the
//     order of ranks.
//
// gram·p runs on the tensor cores in pairs of 16-bit numbers, x = unit·(high + low + at most 2^-22·|x|), as three
// products. Units are powers of two, one for each row of gram, and for each column of p in a source: they use the whole
// range of float16, which is too narrow for p itself. That is as exact as three TF32 products, in half as many
// instructions, and nothing is taken apart inside the loop.
#pragma once

#include "cuda/fit/fit_common.cuh"
#include "kernels.h"

namespace emcl {
namespace {

struct ClusterProblem {
  const float *gram, *logits;       // [P, D, D], [P, D, K]
  float *responsibilities, *scale;  // [P, D, K], [P, K]
  int width, num_bases, num_iters;
  float inverse_temperature, eps;
  bool aligned;  // rows of gram to 16 bytes
};

struct ClusterMemory {
  uint16_t *high, *low;  // [rows, pitch]  of gram / row_unit
  float* own;            // [rows, own_pitch]  p of the block's channels; between iterations gram·p
  uint4* fragments;      // [rows / 16, tiles, 32]  p / column_unit, as a lane multiplies it: two high, two low
  float4* scratch;       // [warps, rows / 16, tiles at once, 32]  each warp's share of gram·p, as lanes hold it
  float *row_unit, *column_unit;
  float* column_sums;       // [warps, columns]
  float* squares;           // [rows / 16, columns]
  float* received;          // [2, blocks, columns]  column sums and squared lengths of each block
  float *factor, *inverse;  // [columns]

  __device__ ClusterMemory(char* start, const ClusterShape& shape)
      : high(reinterpret_cast<uint16_t*>(start)),
        low(reinterpret_cast<uint16_t*>(start + shape.low)),
        own(reinterpret_cast<float*>(start + shape.own)),
        fragments(reinterpret_cast<uint4*>(start + shape.fragments)),
        scratch(reinterpret_cast<float4*>(start + shape.scratch)),
        row_unit(reinterpret_cast<float*>(start + shape.row_unit)),
        column_unit(reinterpret_cast<float*>(start + shape.column_unit)),
        column_sums(reinterpret_cast<float*>(start + shape.column_sums)),
        squares(reinterpret_cast<float*>(start + shape.squares)),
        received(reinterpret_cast<float*>(start + shape.received)),
        factor(reinterpret_cast<float*>(start + shape.factor)),
        inverse(reinterpret_cast<float*>(start + shape.inverse)) {}
};

// The power of two, as bits of its exponent, that brings x into [2^14, 2^15): float16 holds it, and 24 bits below it.
// Its inverse is a normal number, too.
__device__ __forceinline__ uint32_t exponent_to_half(float x) {
  const uint32_t exponent = 268 - (as_bits(x) >> 23 & 0xff);
  return exponent < 253 ? exponent : 253;
}
__device__ __forceinline__ float power(uint32_t exponent) { return as_float(exponent << 23); }

// Two numbers as pairs of float16.
__device__ __forceinline__ void split_half(float first, float second, uint32_t& high, uint32_t& low) {
  high = pack<Float16>(first, second);
  low = pack<Float16>(first - half_to_float(uint16_t(high)), second - half_to_float(uint16_t(high >> 16)));
}

// Row `row` of the block's share of gram, by one warp.
__device__ __forceinline__ void hold_row(const ClusterProblem& problem, const ClusterShape& shape,
                                         const ClusterMemory& memory, const float* gram, int channel, int row,
                                         int lane) {
  constexpr int kLoads = kClusterWidth / 128;
  float4 x[kLoads];
  float most = 0;
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int column = 128 * i + 4 * lane;
    const int count = channel < problem.width ? problem.width - column : 0;
    x[i] = load_four(gram + int64_t(channel) * problem.width + column, count, problem.aligned);
    most = fmaxf(most, fmaxf(fmaxf(fabsf(x[i].x), fabsf(x[i].y)), fmaxf(fabsf(x[i].z), fabsf(x[i].w))));
  }
  const uint32_t exponent = exponent_to_half(most_of_lanes<1, 16>(most));
  const float factor = power(exponent);
  if (lane == 0) memory.row_unit[row] = power(254 - exponent);
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int column = 128 * i + 4 * lane;
    uint2 high, low;
    split_half(x[i].x * factor, x[i].y * factor, high.x, low.x);
    split_half(x[i].z * factor, x[i].w * factor, high.y, low.y);
    if (column >= shape.sources * shape.rows) continue;
    *reinterpret_cast<uint2*>(memory.high + row * shape.pitch + column) = high;
    *reinterpret_cast<uint2*>(memory.low + row * shape.pitch + column) = low;
  }
}

// (GE) own = softmax(own * factor), and each warp's column sums.
template <int MT, int TILES>
__device__ __forceinline__ void expect(const ClusterProblem& problem, const ClusterShape& shape,
                                       const ClusterMemory& memory, int first, int tiles, int thread) {
  const int l = thread % 8, warp = thread / 32;
  float factor[TILES], sums[TILES] = {};
#pragma unroll
  for (int i = 0; i < TILES; ++i) factor[i] = i < tiles ? memory.factor[l + 8 * i] : 0.0f;
#pragma unroll
  for (int row = thread / 8; row < 16 * MT; row += 4 * kFitWarps) {
    float* own = memory.own + row * shape.own_pitch + l;
    float p[TILES];
#pragma unroll
    for (int i = 0; i < TILES; ++i) p[i] = i < tiles ? rounded_product(own[8 * i], factor[i]) : 0.0f;
    softmax(p, l, problem.num_bases);
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      if (first + row >= problem.width) p[i] = 0;
      if (i < tiles) own[8 * i] = p[i];
      sums[i] += p[i];
    }
  }
#pragma unroll
  for (int i = 0; i < TILES; ++i) {
    const float sum = sum_lanes<8, 16>(sums[i]);
    if (i < tiles && thread % 32 < 8) memory.column_sums[(warp * tiles + i) * 8 + l] = sum;
  }
}

__device__ __forceinline__ float column_sum(const ClusterMemory& memory, int columns, int column) {
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < kFitWarps; ++warp) sum += memory.column_sums[warp * columns + column];
  return sum;
}

// Lays p out for the other blocks. A column's sum bounds its numbers.
template <int MT>
__device__ __forceinline__ void offer(const ClusterShape& shape, const ClusterMemory& memory, int tiles, int thread) {
  const int lane = thread % 32;
  for (int group = thread / 32; group < MT * tiles; group += kFitWarps) {
    const int column = group % tiles * 8 + lane / 4;
    const uint32_t exponent = exponent_to_half(column_sum(memory, 8 * tiles, column));
    const float factor = power(exponent);
    const float* own = memory.own + (group / tiles * 16 + lane % 4 * 2) * shape.own_pitch + column;
    uint4 both;
    split_half(own[0] * factor, own[shape.own_pitch] * factor, both.x, both.z);
    split_half(own[8 * shape.own_pitch] * factor, own[9 * shape.own_pitch] * factor, both.y, both.w);
    memory.fragments[group * 32 + lane] = both;
    if (group < tiles && lane % 4 == 0) memory.column_unit[column] = power(254 - exponent);
  }
}

// A warp's share of gram·p, for NT tiles of bases from `tile` on: the channels of every eighth source.
template <int MT, int NT>
__device__ __forceinline__ void multiply_sources(const ClusterShape& shape, const ClusterMemory& memory, int tiles,
                                                 int tile, int warp, int lane) {
  constexpr int kSteps = MT * MT;  // tiles of gram: MT of rows for each of MT depths of 16
  float4* scratch = memory.scratch + warp * MT * NT * 32 + lane;
  for (int source = warp; source < shape.sources; source += kFitWarps) {
    const uint4* fragments = in_block(memory.fragments, source);
    const float* units = in_block(memory.column_unit, source);
    uint4 right[MT][NT];
    float2 unit[NT];
#pragma unroll
    for (int depth = 0; depth < MT; ++depth)
#pragma unroll
      for (int n = 0; n < NT; ++n) right[depth][n] = fragments[(depth * tiles + tile + n) * 32 + lane];
#pragma unroll
    for (int n = 0; n < NT; ++n) unit[n] = *reinterpret_cast<const float2*>(units + 8 * (tile + n) + lane % 4 * 2);

    const int start = lane % 16 * shape.pitch + source * 16 * MT + lane / 16 * 8;
    uint32_t high[2][4], low[2][4];  // of this step and of the next
    const auto load_left = [&](int step) {
      const int at = start + step % MT * 16 * shape.pitch + step / MT * 16;
      load_matrices(high[step % 2], memory.high + at);
      load_matrices(low[step % 2], memory.low + at);
    };
    float sums[MT][NT][4] = {};
    load_left(0);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step + 1 < kSteps) load_left(step + 1);
      const auto multiply = [&](const uint32_t (&left)[4], bool right_low) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          const uint4 both = right[step / MT][n];
          const uint32_t b[2] = {right_low ? both.z : both.x, right_low ? both.w : both.y};
          multiply_half(sums[step % MT][n], left, b);
        }
      };
      multiply(low[step % 2], false);
      multiply(high[step % 2], true);
      multiply(high[step % 2], false);
    }
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const float* sum = sums[m][n];
        float4 value = make_float4(sum[0] * unit[n].x, sum[1] * unit[n].y, sum[2] * unit[n].x, sum[3] * unit[n].y);
        float4& to = scratch[(m * NT + n) * 32];
        if (source != warp) value = make_float4(to.x + value.x, to.y + value.y, to.z + value.z, to.w + value.w);
        to = value;
      }
  }
}

// (GM) gram·p of the block's channels from all warps' shares, and its squared lengths. It takes the place of p unless
// this is the last iteration.
template <int MT, int NT>
__device__ __forceinline__ void maximise(const ClusterShape& shape, const ClusterMemory& memory, int tiles, int tile,
                                         bool last, int thread) {
  const int lane = thread % 32, shares = shape.sources < kFitWarps ? shape.sources : kFitWarps;
#pragma unroll
  for (int group = thread / 32; group < MT * NT; group += kFitWarps) {
    float4 g = memory.scratch[group * 32 + lane];
    for (int share = 1; share < shares; ++share) {
      const float4 more = memory.scratch[(share * MT * NT + group) * 32 + lane];
      g = make_float4(g.x + more.x, g.y + more.y, g.z + more.z, g.w + more.w);
    }
    const int row = group / NT * 16 + lane / 4, column = (tile + group % NT) * 8 + lane % 4 * 2;
    const float upper = memory.row_unit[row], lower = memory.row_unit[row + 8];
    g = make_float4(g.x * upper, g.y * upper, g.z * lower, g.w * lower);
    float2& p0 = *reinterpret_cast<float2*>(memory.own + row * shape.own_pitch + column);
    float2& p1 = *reinterpret_cast<float2*>(memory.own + (row + 8) * shape.own_pitch + column);
    const float first = sum_lanes<4, 16>(p0.x * g.x + p1.x * g.z), second = sum_lanes<4, 16>(p0.y * g.y + p1.y * g.w);
    if (lane < 4) {
      memory.squares[group / NT * 8 * tiles + column] = first;
      memory.squares[group / NT * 8 * tiles + column + 1] = second;
    }
    if (!last) {
      p0 = make_float2(g.x, g.y);
      p1 = make_float2(g.z, g.w);
    }
  }
}

// TILES: most tiles of 8 bases, all of them up to 4.
template <int MT, int TILES>
__global__ void __launch_bounds__(32 * kFitWarps, 1) fit_cluster_kernel(ClusterProblem problem, ClusterShape shape) {
#if defined(EMCL_EMULATED) || __CUDA_ARCH__ >= 900
  constexpr int kRows = 16 * MT, NT = TILES < 4 ? TILES : 4, kThreads = 32 * kFitWarps;
  constexpr float kLargest = 3.4028234e38f;  // of float32
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int tiles = TILES > 4 ? shape.tiles : TILES, columns = 8 * tiles;
  const int rank = int(cluster_rank()), first = rank * kRows, width = problem.width, num_bases = problem.num_bases;
  const int64_t index = blockIdx.x / unsigned(shape.blocks), size = int64_t(width) * num_bases;
  const ClusterMemory memory(dynamic_shared(), shape);

  const float* gram = problem.gram + index * width * width;
  for (int row = warp; row < kRows; row += kFitWarps) hold_row(problem, shape, memory, gram, first + row, row, lane);
  for (int i = thread; i < kRows * columns; i += kThreads) {
    const int row = i / columns, k = i % columns;
    const bool inside = first + row < width && k < num_bases;
    memory.own[row * shape.own_pitch + k] =
        inside ? problem.logits[index * size + int64_t(first + row) * num_bases + k] : 0.0f;
  }
  for (int k = thread; k < columns; k += kThreads) memory.factor[k] = problem.inverse_temperature;
  __syncthreads();

  for (int t = 0; t < problem.num_iters; ++t) {
    const bool last = t + 1 == problem.num_iters;
    expect<MT, TILES>(problem, shape, memory, first, tiles, thread);
    __syncthreads();
    offer<MT>(shape, memory, tiles, thread);
    cluster_sync();  // p of all blocks is there
    for (int tile = 0; tile < tiles; tile += NT) {
      multiply_sources<MT, NT>(shape, memory, tiles, tile, warp, lane);
      __syncthreads();
      maximise<MT, NT>(shape, memory, tiles, tile, last, thread);
      __syncthreads();
    }
    for (int i = thread; i < shape.blocks * columns; i += kThreads) {
      const int k = i % columns;
      float* to = in_block(memory.received, uint32_t(i / columns)) + rank * columns + k;
      float square = 0;
#pragma unroll
      for (int m = 0; m < MT; ++m) square += memory.squares[m * columns + k];
      to[0] = column_sum(memory, columns, k);
      to[shape.blocks * columns] = square;
    }
    cluster_sync();  // all sums are there, and nobody reads this iteration's p any more
    for (int k = thread; k < columns; k += kThreads) {
      float sum = 0, square = 0;
      for (int block = 0; block < shape.blocks; ++block) {
        sum += memory.received[block * columns + k];
        square += memory.received[(shape.blocks + block) * columns + k];
      }
      const float inverse = 1.0f / (problem.eps + sum);
      const float scale = 1.0f / (problem.eps + inverse * root(square));
      memory.inverse[k] = inverse;
      // Of a basis that has no channel, both are as large as eps allows, and what they multiply is zero.
      const float both = inverse * scale * problem.inverse_temperature;
      memory.factor[k] = both > kLargest ? kLargest : both;
      if (last && rank == 0 && k < num_bases) problem.scale[index * num_bases + k] = scale;
    }
    __syncthreads();
  }

  float* responsibilities = problem.responsibilities + index * size + int64_t(first) * num_bases;
  const int inside = width - first < kRows ? width - first : kRows;
  for (int i = thread; i < inside * num_bases; i += kThreads)
    responsibilities[i] = memory.own[i / num_bases * shape.own_pitch + i % num_bases] * memory.inverse[i % num_bases];
#endif
}

template <int MT, int TILES>
bool launch_cluster(const Call& call, const ClusterProblem& problem, const ClusterShape& shape, int64_t problems) {
  const Launch blocks{.x = unsigned(problems * shape.blocks),
                      .threads = 32 * kFitWarps,
                      .shared = size_t(shape.size),
                      .cluster = unsigned(shape.blocks)};
  if (shape.blocks > 8 && !has_room(blocks, fit_cluster_kernel<MT, TILES>)) return false;
  launch(call.stream, blocks, fit_cluster_kernel<MT, TILES>, problem, shape);
  return true;
}
template <int MT>
bool launch_cluster(const Call& call, const ClusterProblem& problem, const ClusterShape& shape, int64_t problems) {
  if (shape.tiles == 1) return launch_cluster<MT, 1>(call, problem, shape, problems);
  if (shape.tiles == 2) return launch_cluster<MT, 2>(call, problem, shape, problems);
  if (shape.tiles == 4) return launch_cluster<MT, 4>(call, problem, shape, problems);
  return launch_cluster<MT, 16>(call, problem, shape, problems);
}
// False, and nothing is launched, where the device has no room for a cluster of more than 8 blocks.
inline bool fit_in_cluster(const Call& call, const ClusterProblem& problem, const ClusterShape& shape,
                           int64_t problems) {
  if (shape.rows == 32) return launch_cluster<2>(call, problem, shape, problems);
  if (shape.rows == 48) return launch_cluster<3>(call, problem, shape, problems);
  return launch_cluster<4>(call, problem, shape, problems);
}

}  // namespace
}  // namespace emcl
