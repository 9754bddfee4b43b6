// Frame weights of a tile of texts and a few videos, in the registers that the tensor cores' sums lie in.
//
// A warp holds 16·M texts and one group of 64 columns. A group is whole videos, each padded to 8, 16, 32 or 64 columns,
// so that a video's frames are in the 1, 2, 4 or 8 fragments of eight columns of the same four lanes. Two texts that
// lie below each other in memory are in the same lane: row r of 16 is text 2·(r % 8) + r / 8.
#pragma once

#include "cuda/pooled/pooled_tile.cuh"

namespace emcl {
namespace pooled {
namespace {

constexpr float kTiny = 1e-12f;  // shortest length that a vector is divided by

// A length from its square. Of a square that is no number, also because it overflows, there is none.
__device__ __forceinline__ float length_of_square(float square) {
  return square < INFINITY ? sqrtf(square > kTiny * kTiny ? square : kTiny * kTiny) : NAN;
}

struct Range {
  int first, count;
};
__device__ __forceinline__ Range block_of(int index, int block, int all) {
  const int first = index * block;
  return {first, all - first < block ? all - first : block};
}
__device__ __forceinline__ int video_blocks(const Problems& p) {
  return (p.videos + p.video_block - 1) / p.video_block;
}
// Of the problem `local` of a launch.
__device__ __forceinline__ Range texts_of(const Problems& p, int local) {
  return block_of((p.first + local) / video_blocks(p), p.text_block, p.texts);
}
__device__ __forceinline__ Range videos_of(const Problems& p, int local) {
  return block_of((p.first + local) % video_blocks(p), p.video_block, p.videos);
}

// Columns of one group of a problem.
struct Group {
  Frames frames;
  int first_video, videos;  // of the problem's, from the group's first on
  __device__ __forceinline__ int video(int column) const { return column >> frames.padded_log; }
  __device__ __forceinline__ int frame(int column) const { return column & ((1 << frames.padded_log) - 1); }
  __device__ __forceinline__ int tiles() const { return 1 << (frames.padded_log - 3); }  // of 8 columns, of a video
  __device__ __forceinline__ bool holds(int column) const {
    return frame(column) < frames.count && video(column) < videos;
  }
  // Which row of the problem's frames the column is, or -1.
  __device__ __forceinline__ int row(int column) const {
    return holds(column) ? (first_video + video(column)) * frames.count + frame(column) : -1;
  }
};
__device__ __forceinline__ Group group_of(Frames frames, const Range& videos, int group) {
  const int first = group * frames.videos_of_group();
  return {frames, first, videos.count - first};
}
// The same, and nothing that follows from it is kept in registers from before.
__device__ __forceinline__ Group group_afresh(Frames frames, const Range& videos, int group) {
  return group_of({afresh(frames.count), afresh(frames.padded_log)}, videos, group);
}

// Of a fragment's 16 texts, that of sums [2·half] and [2·half + 1].
__device__ __forceinline__ int own_text(int half) { return lane_of() / 4 * 2 + half; }
// Of a group's 64 columns, that of sums [i] of fragment n.
__device__ __forceinline__ int own_column(int n, int i) { return 8 * n + sum_column(i); }

// In which row of a matrix the texts and frames of a block's tile are: those of the problem follow row `from`.
struct TileRows {
  Frames frames;
  Range videos;
  int first_group, first_text, texts;
  __device__ __forceinline__ int text(int row, int from) const {
    const int text = first_text + row / 16 * 16 + row % 8 * 2 + row / 8 % 2;
    return text < texts ? from + text : -1;
  }
  __device__ __forceinline__ int frame(int column, int from) const {
    const int row = group_of(frames, videos, first_group + column / kGroup).row(column % kGroup);
    return row < 0 ? row : from + row;
  }
};

// Moves the fragments up, so that a loop over them has the one at hand in the first place: registers cannot be indexed.
template <int M>
__device__ __forceinline__ void next_fragment(float (&fragments)[M][8][4]) {
#pragma unroll
  for (int m = 1; m < M; ++m)
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) fragments[m - 1][n][i] = fragments[m][n][i];
}

// Counted in the warps that share a group.
template <class P>
__device__ __forceinline__ int thread_of_group() {
  return int(threadIdx.x) % (32 * P::WARPS_M);
}
// What belongs to each frame of a group, into shared memory; zero where a column is no frame.
__device__ __forceinline__ void load_columns(const Group& group, const float* values, float* to, int thread) {
  if (thread < kGroup) {
    const int row = group.row(thread);
    to[thread] = row < 0 ? 0.0f : values[row];
  }
}

// The scales of the rows that were multiplied. text, columns: those of the warp's texts [16] and columns [64].
template <class Numbers>
__device__ __forceinline__ void unscale(float (&dots)[8][4], const float* text, int texts, const float* columns) {
  if constexpr (std::is_same_v<Numbers, Scaled>) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = own_text(half) < texts ? text[own_text(half)] : 0.0f;
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) dots[n][2 * half + i] = dots[n][2 * half + i] * scale * columns[own_column(n, i)];
    }
  }
}

// The inner products of a warp's 16 texts with a group's frames, to and from what is kept of a problem, [its frames,
// text_block]. Two texts that are neighbours there are in the same lane. text: the lane's first of `texts`.
__device__ __forceinline__ void keep_products(const float (&dots)[8][4], const Group& group, int text, int texts,
                                              int text_block, float* kept) {
  const bool in_pairs = text_block % 2 == 0;
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = group.row(own_column(n, i));
      if (row < 0) continue;
      float* to = kept + int64_t(row) * text_block + text;
      if (in_pairs && text + 1 < texts) {
        *reinterpret_cast<float2*>(to) = make_float2(dots[n][i], dots[n][2 + i]);
      } else {
        if (text < texts) to[0] = dots[n][i];
        if (text + 1 < texts) to[1] = dots[n][2 + i];
      }
    }
}
__device__ __forceinline__ void take_products(const float* kept, const Group& group, int text, int texts,
                                              int text_block, float (&dots)[8][4]) {
  const bool in_pairs = text_block % 2 == 0;
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float2 both = make_float2(0, 0);
      const int row = group.row(own_column(n, i));
      if (row >= 0) {
        const float* from = kept + int64_t(row) * text_block + text;
        if (in_pairs && text + 1 < texts) {
          both = *reinterpret_cast<const float2*>(from);
        } else {
          if (text < texts) both.x = from[0];
          if (text + 1 < texts) both.y = from[1];
        }
      }
      dots[n][i] = both.x;
      dots[n][2 + i] = both.y;
    }
}

struct Sum {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};
struct Largest {
  __device__ __forceinline__ float operator()(float a, float b) const { return a > b ? a : b; }
};
// Every fragment gets what all fragments and lanes of its video have together.
template <class F>
__device__ __forceinline__ void over_video(float (&values)[8], int tiles, const F& f) {
#pragma unroll
  for (int n = 6; n >= 0; --n)
    if (((n + 1) & (tiles - 1)) != 0) values[n] = f(values[n], values[n + 1]);
  float video = 0;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    if ((n & (tiles - 1)) == 0) {
      video = f(values[n], shuffle_xor(values[n], 1));
      video = f(video, shuffle_xor(video, 2));
    }
    values[n] = video;
  }
}

// (PW) before the mask, of one text: dots and the result are sums [2·half] and [2·half + 1] of the fragments.
__device__ __forceinline__ void soften(const float (&dots)[8][4], int half, const Group& group,
                                       float inverse_temperature, float (&soft)[8][4]) {
  float values[8];
  const auto inside = [&](int n, int i) { return group.frame(own_column(n, i)) < group.frames.count; };
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float none = -INFINITY;
    values[n] = Largest()(inside(n, 0) ? dots[n][2 * half] : none, inside(n, 1) ? dots[n][2 * half + 1] : none);
  }
  over_video(values, group.tiles(), Largest());
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float peak = values[n];
    values[n] = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float e = inside(n, i) ? expf((dots[n][2 * half + i] - peak) * inverse_temperature) : 0.0f;
      soft[n][2 * half + i] = e;
      values[n] += e;
    }
  }
  over_video(values, group.tiles(), Sum());
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float share = 1 / values[n];
    soft[n][2 * half] *= share;
    soft[n][2 * half + 1] *= share;
  }
}

// Whether two runs of 16 columns have a video in common.
__device__ __forceinline__ bool same_video(int a, int b, int tiles) {
  return tiles <= 2 ? a == b : 2 * a / tiles == 2 * b / tiles;
}

// Inner products of a group's frames, [64, 64].
template <class P>
using InnerTile = Tile<SmallParts<typename P::LeftParts>, kGroup, kGroup>;
template <class P>
__device__ __forceinline__ void load_inner(const Matrix16& inner, int64_t group, bool present, const InnerTile<P>& to) {
  constexpr int kPerRow = kGroup / 8, kPerPart = kGroup * kPerRow;
  for (int piece = thread_of_group<P>(); piece < InnerTile<P>::Numbers::count * kPerPart; piece += 32 * P::WARPS_M) {
    const int part = piece / kPerPart, row = piece % kPerPart / kPerRow, column = piece % kPerRow * 8;
    const int64_t from = present ? part * inner.part + (group * kGroup + row) * inner.stride + column : 0;
    copy_async(to.at(part, row, column), inner.numbers + from, present);
  }
  copies_commit();
}
// products += weights·inner, of the warp's [16, 64]
template <class Inner>
__device__ __forceinline__ void multiply_inner(const float (&weights)[8][4], const Inner& inner, int tiles,
                                               float (&products)[8][4]) {
#pragma unroll
  for (int run = 0; run < 4; ++run) {
    const auto left = left_of_sums<typename Inner::Numbers>(weights[2 * run], weights[2 * run + 1]);
#pragma unroll
    for (int other = 0; other < 4; ++other)
      if (same_video(run, other, tiles)) {
        const auto right = load_right<Depth::columns>(inner, 16 * other, 16 * run);
        multiply(products[2 * other], left, right, 0);
        multiply(products[2 * other + 1], left, right, 1);
      }
  }
}

// Weights of 16 texts of each warp, [column][text], for sums over texts.
template <class P, class Numbers>
using TextTile = Tile<Numbers, P::kColumns, 16 * P::WARPS_M>;

// Of the warp's own columns 8·n + ... and texts.
template <class P, class Numbers>
__device__ __forceinline__ void put_pair(const TextTile<P, Numbers>& tile, int n, int i, float first, float second) {
  uint32_t parts[Numbers::count];
  split_pair<Numbers>(first, second, parts);
#pragma unroll
  for (int part = 0; part < Numbers::count; ++part)
    *reinterpret_cast<uint32_t*>(
        tile.at(part, P::warp_n() * kGroup + own_column(n, i), P::warp_m() * 16 + own_text(0))) = parts[part];
}
template <class P, class Numbers>
__device__ __forceinline__ void put_weights(const TextTile<P, Numbers>& tile, const float (&weights)[8][4]) {
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) put_pair<P, Numbers>(tile, n, i, weights[n][i], weights[n][2 + i]);
}

// Σ over texts of left·weightᵀ for all pairs of frames of a video, and of left. The warps of a group share its pairs
// out.
template <class P, class Numbers>
struct Squares {
  static constexpr int kOwn = 4 / P::WARPS_M;                    // runs of 16 rows of each warp
  static constexpr int kUnrolled = Numbers::count == 3 ? 1 : 4;  // of the loop over texts, for shorter code
  float sums[kOwn][8][4] = {}, counts[kOwn][4] = {};

  __device__ __forceinline__ void add(const TextTile<P, Numbers>& left, const TextTile<P, Numbers>& weights,
                                      int tiles) {
    using Number = typename Numbers::Number;
    Right<Parts<Number, 1>> ones;
    for (uint32_t (&half)[2] : ones.part[0]) half[0] = half[1] = pack<Number>(1, 1);
    const int first = P::warp_n() * kGroup;
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      const int run = P::warp_m() + own * P::WARPS_M;
      float count[4] = {};
#pragma unroll 1
      for (int text = 0; text < 16 * P::WARPS_M; text += 16)
        multiply(count, load_left<Depth::columns>(left, first + 16 * run, text), ones, 0);
#pragma unroll
      for (int i = 0; i < 4; ++i) counts[own][i] += count[i];
#pragma unroll
      for (int other = 0; other < 4; ++other)
        if (same_video(run, other, tiles)) {
          float recent[2][4] = {};
#pragma unroll kUnrolled
          for (int text = 0; text < 16 * P::WARPS_M; text += 16) {
            const auto a = load_left<Depth::columns>(left, first + 16 * run, text);
            const auto b = load_right<Depth::columns>(weights, first + 16 * other, text);
            multiply(recent[0], a, b, 0);
            multiply(recent[1], a, b, 1);
          }
#pragma unroll
          for (int i = 0; i < 8; ++i) sums[own][2 * other + i / 4][i % 4] += recent[i / 4][i % 4];
        }
    }
  }

  // squares [64, padded frames], counts [64] of the warp's group. factor(column): of what was added up.
  template <class F>
  __device__ __forceinline__ void write(const Group& group, const F& factor, float* squares, float* all_counts) const {
#pragma unroll
    for (int own = 0; own < kOwn; ++own)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * (P::warp_m() + own * P::WARPS_M) + sum_row(i);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const int column = own_column(n, i);
          if (group.video(row) == group.video(column))
            squares[(row << group.frames.padded_log) + group.frame(column)] =
                sums[own][n][i] * factor(row) * factor(column);
        }
        if (lane_of() % 4 == 0 && i % 2 == 0) all_counts[row] = counts[own][i] * factor(row);
      }
  }
};

}  // namespace
}  // namespace pooled
}  // namespace emcl
