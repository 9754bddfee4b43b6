// Cosine of mapped texts with mapped pooled frames (docs/math.md, PN, PL).
#include "cuda/pooled/pooled_weights.cuh"

namespace emcl {
namespace pooled {
namespace {

// Least share of a pooled row's square, if nothing cancelled, that the quadratic form is trusted at: docs/math.md, PL.
constexpr float kTrusted = 1.0f / 128;
// In the place of a cosine whose row has to be made.
constexpr float kLost = 2;

struct Comparison {
  Problems problems;
  Matrix16 rows;   // frames, then texts
  Matrix16 exact;  // the same, as numbers of bfloat16 parts
  Map map;
  const float* scale;
  int width;
  const float *frame_mask, *kept;  // kept: as the moments left it, or null
  float inverse_temperature;
  Mapped mapped;
  float *cosine, *length;  // [texts, videos] of all problems; length may be null
};

// Of what over_video gave, that of the group's video `video`.
__device__ __forceinline__ float of_video(const float (&values)[8], int video, int tiles) {
  float value = 0;
#pragma unroll
  for (int n = 0; n < 8; ++n)
    if (n == video * tiles) value = values[n];
  return value;
}

// Whether the square of a lane's video may be lost in rounding. squares: see of_video; least: of the group's videos
__device__ __forceinline__ bool is_doubtful(const float (&squares)[8], const Group& group, const float* least) {
  bool doubtful = false;
#pragma unroll
  for (int video = lane_of() % 4; video < 8; video += 4)
    if (video * group.tiles() < 8 && video < group.videos)
      doubtful |= !(of_video(squares, video, group.tiles()) - least[video] >= 0);
  return doubtful;
}

// The square of each row of a group's videos of which nothing can have been lost: before the mask, the weights of a
// video add up to one. To be followed by a barrier.
__device__ __forceinline__ void load_least(const Comparison& w, const Group& group, int local, int own_group,
                                           int frame_row, float* least, int thread) {
  const float* squares = w.mapped.squares + (int64_t(local) * w.problems.groups() + own_group) * kGroup;
  if (thread >= group.frames.videos_of_group()) return;
  float most = 0;
  for (int f = 0; f < group.frames.count; ++f) {
    const int column = (thread << group.frames.padded_log) + f, row = group.row(column);
    if (row < 0) continue;
    const float mask = w.frame_mask[frame_row + row];
    most = fmaxf(most, squares[column] * mask * mask);
  }
  least[thread] = kTrusted * most;
}

// Where frames cancel, of what the weights of one text give, the square becomes NaN. own: the squares of the frames.
__device__ __forceinline__ void mark_lost(const float (&weights)[8][4], int half, const float* own, int tiles,
                                          float (&squares)[8]) {
  float reaches[8];
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    reaches[n] = 0;
#pragma unroll
    for (int i = 2 * half; i < 2 * half + 2; ++i) reaches[n] += fabsf(weights[n][i]) * sqrtf(own[own_column(n, i)]);
  }
  over_video(reaches, tiles, Sum());
#pragma unroll
  for (int n = 0; n < 8; ++n) squares[n] = squares[n] - kTrusted * reaches[n] * reaches[n] >= 0 ? squares[n] : NAN;
}

// Rounding may put a cosine outside of [-1, 1], as little as that is; NaN stays NaN.
__device__ __forceinline__ float within_one(float cosine) { return cosine > 1 ? 1.0f : cosine < -1 ? -1.0f : cosine; }

// What a warp keeps of the row that it makes, in shared memory.
constexpr int kMostBases = 128;
struct MadeRow {
  float weights[kGroup];                    // of its frames
  float row[kMostBases], text[kMostBases];  // coefficients of what the map adds to it, and to the text
};

__device__ __forceinline__ float over_warp(float x) {
  for (int step = 16; step > 0; step /= 2) x += shuffle_xor(x, step);
  return x;
}

// Like `number`, in little code.
__device__ __forceinline__ float rare_number(const Matrix16& x, int64_t row, int64_t column) {
  float sum = 0;
#pragma unroll 1
  for (int part = 0; part < x.parts; ++part) sum += widen(BFloat16{x.numbers[part * x.part + row * x.stride + column]});
  return sum;
}

// The frame weights of one text and video of a problem, again.
__device__ void weigh_again(const Comparison& w, int local, int text, int video, MadeRow& made) {
  const Problems& p = w.problems;
  const int lane = lane_of(), frames = p.frames.count;
  const Range texts = texts_of(p, local), videos = videos_of(p, local);
  const int first_frame = (videos.first + video) * frames, text_row = p.videos * frames + texts.first + text;
#pragma unroll 1
  for (int f = 0; f < frames; ++f) {
    float dot = 0;
    if (w.kept != nullptr) {
      dot = w.kept[(int64_t(local) * p.frame_rows() + video * frames + f) * p.text_block + text];
    } else {
#pragma unroll 1
      for (int d = lane; d < w.width; d += 32)
        dot += rare_number(w.exact, first_frame + f, d) * rare_number(w.exact, text_row, d);
      dot = over_warp(dot);
    }
    if (lane == 0) made.weights[f] = dot;
  }
  __syncwarp();

  float peak = -INFINITY, total = 0;
#pragma unroll 1
  for (int f = 0; f < frames; ++f) peak = fmaxf(peak, made.weights[f]);
#pragma unroll 1
  for (int f = 0; f < frames; ++f) total += expf((made.weights[f] - peak) * w.inverse_temperature);
  __syncwarp();
#pragma unroll 1
  for (int f = lane; f < frames; f += 32)
    made.weights[f] = expf((made.weights[f] - peak) * w.inverse_temperature) / total * w.frame_mask[first_frame + f];
  __syncwarp();
}

// The pooled row of one text and video of a problem, and the cosine from it. One warp.
__device__ void make_row(const Comparison& w, int local, int text, int video, MadeRow& made) {
  const Problems& p = w.problems;
  const int lane = lane_of(), frames = p.frames.count, num_bases = int(w.map.num_bases);
  const Range texts = texts_of(p, local), videos = videos_of(p, local);
  const int first_frame = (videos.first + video) * frames, text_row = p.videos * frames + texts.first + text;
  const int64_t mapped_text = int64_t(local) * p.text_block + text,
                mapped_frame = int64_t(local) * p.frame_rows() + video * frames;
  weigh_again(w, local, text, video, made);

#pragma unroll 1
  for (int k = lane; k < num_bases; k += 32) {
    const float times = float(w.map.weight) * w.map.scale[int64_t(local) * num_bases + k];
    float sum = 0;
#pragma unroll 1
    for (int f = 0; f < frames; ++f) sum += made.weights[f] * rare_number(w.mapped.frames, mapped_frame + f, k);
    made.row[k] = sum * times;
    made.text[k] = rare_number(w.mapped.texts, mapped_text, k) * times;
  }
  __syncwarp();

  float square = 0, product = 0;
#pragma unroll 1
  for (int d = lane; d < w.width; d += 32) {
    const float* r = w.map.responsibilities + (int64_t(local) * w.width + d) * num_bases;
    float x = 0, t = rare_number(w.exact, text_row, d);
#pragma unroll 1
    for (int f = 0; f < frames; ++f) x += made.weights[f] * rare_number(w.exact, first_frame + f, d);
#pragma unroll 1
    for (int k = 0; k < num_bases; ++k) {
      x += made.row[k] * r[k];
      t += made.text[k] * r[k];
    }
    square += x * x;
    product += x * t;
  }
  const float length = length_of_square(over_warp(square));
  product = over_warp(product);
  if (lane == 0) {
    const int64_t pair = int64_t(texts.first + text) * p.videos + videos.first + video;
    w.cosine[pair] = within_one(product / (w.mapped.text_length[mapped_text] * length));
    if (w.length != nullptr) w.length[pair] = length;
  }
  __syncwarp();  // before the next row takes the memory
}

// The rows of a block's lost pairs, one warp each. Nothing else is in registers any more.
template <class P>
__device__ void make_lost_rows(const Comparison& w, int local, int first, int first_group, char* memory) {
  const Problems& p = w.problems;
  const Range texts = texts_of(p, local), videos = videos_of(p, local);
  const int of_group = p.frames.videos_of_group(), last_text = first + P::kRows;
  const int rows = (last_text < texts.count ? last_text : texts.count) - first;
  const int first_video = first_group * of_group, last_video = first_video + P::WARPS_N * of_group;
  const int columns = (last_video < videos.count ? last_video : videos.count) - first_video;
  MadeRow& made = reinterpret_cast<MadeRow*>(memory)[warp_of()];
#pragma unroll 1
  for (int i = warp_of(); i < rows * columns; i += P::kThreads / 32) {
    const int text = first + i / columns, video = first_video + i % columns;
    if (w.cosine[int64_t(texts.first + text) * p.videos + videos.first + video] == kLost)
      make_row(w, local, text, video, made);
  }
}

// Shared memory of a block.
template <class P>
struct Layout {
  static constexpr int kInner = std::max(P::kBytes, BasesTile<P>::kBytes);  // before it, one product after the other
  static constexpr int kColumns = kInner + P::WARPS_N * InnerTile<P>::kBytes;
  static constexpr bool kScaled = std::is_same_v<typename P::LeftParts, Scaled>;
  static constexpr int kLeast = kColumns + (1 + kScaled) * P::kColumns * int(sizeof(float));  // of 8 videos a group
  static constexpr int kAnyLost = kLeast + 8 * P::WARPS_N * int(sizeof(float));
  static constexpr int kBytes = kAnyLost + 16;
  static_assert(kBytes <= kNeededShared && kInner >= P::kThreads / 32 * int(sizeof(MadeRow)));
};

template <class P>
__global__ void __launch_bounds__(P::kThreads, 1) cosine_kernel(const Comparison w) {
  const Problems& problems = w.problems;
  const int local = int(blockIdx.y), tiles_of_texts = (problems.text_block + P::kRows - 1) / P::kRows;
  const int first = int(blockIdx.x) % tiles_of_texts * P::kRows;
  const int own_group = int(blockIdx.x) / tiles_of_texts * P::WARPS_N + P::warp_n();
  const Range texts = texts_of(problems, local), videos = videos_of(problems, local);
  const int frame_row = videos.first * problems.frames.count,
            text_row = problems.videos * problems.frames.count + texts.first;
  if (first >= texts.count) return;

  using L = Layout<P>;
  using InBases = BasesTile<P>;
  char* memory = dynamic_shared();
  const InnerTile<P> inner(memory + L::kInner + P::warp_n() * InnerTile<P>::kBytes);
  float* mask = reinterpret_cast<float*>(memory + L::kColumns) + P::warp_n() * kGroup;
  float* scale = mask + P::kColumns;  // where there is any
  float* least = reinterpret_cast<float*>(memory + L::kLeast) + 8 * P::warp_n();
  int* any_lost = reinterpret_cast<int*>(memory + L::kAnyLost);
  load_columns(group_of(problems.frames, videos, own_group), w.frame_mask + frame_row, mask, thread_of_group<P>());
  if (L::kScaled && w.scale != nullptr)
    load_columns(group_of(problems.frames, videos, own_group), w.scale + frame_row, scale, thread_of_group<P>());
  if (threadIdx.x == 0) *any_lost = 0;
  load_least(w, group_of(problems.frames, videos, own_group), local, own_group, frame_row, least, thread_of_group<P>());
  load_inner<P>(w.mapped.inner, local * problems.groups() + own_group, own_group < problems.groups(), inner);

  float dots[P::M][8][4] = {};
  const TileRows tile_rows{problems.frames, videos, own_group - P::warp_n(), first, texts.count};
  if (w.kept == nullptr) {
    const auto left = [&](int row) { return tile_rows.text(row, text_row); };
    const auto right = [&](int column) { return tile_rows.frame(column, frame_row); };
    P::template run<(P::LeftParts::count > 1)>(memory, dots, Operand{w.rows, left}, Operand{w.rows, right}, w.width);
  } else {  // for what was loaded above
    copies_wait<0>();
    __syncthreads();
  }
  // Not unrolled, so that the code stays in the instruction cache: the fragments pass by in dots[0].
#pragma unroll 1
  for (int m = 0; m < P::M; ++m, next_fragment(dots)) {
    const Group group = group_afresh(problems.frames, videos, own_group);
    const int first_text = first + (P::warp_m() * P::M + m) * 16, text = first_text + own_text(0),
              tiles = group.tiles();
    if (w.kept != nullptr) {
      take_products(w.kept + int64_t(local) * problems.frame_rows() * problems.text_block, group, text, texts.count,
                    problems.text_block, dots[0]);
    } else {
      unscale<typename P::LeftParts>(dots[0], w.scale + text_row + first_text, texts.count - first_text, scale);
    }
    float weights[8][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) soften(dots[0], half, group, w.inverse_temperature, weights);
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[n][i] *= mask[own_column(n, i)];
    if (w.mapped.num_bases > 0) {
      const auto left = [&](int row) {
        return tile_rows.text(row / 16 * 16 * P::M + 16 * m + row % 16, local * problems.text_block);
      };
      const auto right = [&](int column) { return tile_rows.frame(column, local * problems.frame_rows()); };
      auto& corrected = reinterpret_cast<float (&)[1][8][4]>(dots[0]);
      InBases::template run<false>(memory, corrected, Operand{w.mapped.texts, left},
                                   Operand{w.mapped.frames.from_column(w.mapped.num_bases), right}, w.mapped.num_bases);
    }
    float products[8][4] = {};
    multiply_inner(weights, inner, tiles, products);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float numerators[8], squares[8];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        numerators[n] = squares[n] = 0;
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          numerators[n] += weights[n][i] * dots[0][n][i];
          squares[n] += weights[n][i] * products[n][i];
        }
      }
      over_video(numerators, tiles, Sum());
      over_video(squares, tiles, Sum());
      if (any_of_warp(is_doubtful(squares, group, least))) {
        const int64_t own = (int64_t(local) * problems.groups() + own_group) * kGroup;
        mark_lost(weights, half, w.mapped.squares + own, tiles, squares);
      }
#pragma unroll
      for (int four = 0; four < 8; four += 4) {  // videos, one for each lane of a text
        const int video = four + lane_of() % 4;
        if (video * tiles >= 8 || video >= group.videos || text + half >= texts.count) continue;
        const float numerator = of_video(numerators, video, tiles), square = of_video(squares, video, tiles),
                    length = sqrtf(square > kTiny * kTiny ? square : kTiny * kTiny);
        const bool lost = square != square;
        const int64_t pair =
            int64_t(texts.first + text + half) * problems.videos + videos.first + group.first_video + video;
        const float cosine =
            numerator / (w.mapped.text_length[int64_t(local) * problems.text_block + text + half] * length);
        w.cosine[pair] = lost ? kLost : within_one(cosine);
        if (w.length != nullptr) w.length[pair] = length;
        if (lost) *any_lost = 1;
      }
    }
  }
  __syncthreads();
  if (*any_lost != 0) make_lost_rows<P>(w, local, first, own_group - P::warp_n(), memory);
}

template <class P>
void compare(const Call& call, const Comparison& w) {
  const Problems& problems = w.problems;
  Launch shape{unsigned(divide_up(problems.text_block, P::kRows) * divide_up(problems.groups(), P::WARPS_N)),
               unsigned(problems.count)};
  shape.threads = P::kThreads;
  shape.shared = Layout<P>::kBytes;
  launch(call.stream, shape, cosine_kernel<P>, w);
}

}  // namespace

void cosine_of(const Call& call, Element element, const Problems& problems, const PackedRows& rows, const Pool& size,
               const Map& map, const float* frame_mask, const float* kept, float* cosine, float* length) {
  Comparison w{};
  w.problems = problems;
  w.rows = rows.own;
  w.exact = rows.exact;
  w.map = map;
  w.scale = rows.scale;
  w.width = int(size.width);
  w.frame_mask = frame_mask;
  w.kept = kept;
  w.inverse_temperature = float(1 / size.temperature);
  w.mapped = map_rows(call, problems, rows, size.width, map, true);
  w.cosine = cosine;
  w.length = length;
  with_element(element, [&](auto zero) {
    using Numbers = OwnRows<decltype(zero)>;
    if (problems.text_block <= kSmallBlock) return compare<SmallTile<Numbers>>(call, w);
    compare<LargeTile<Numbers>>(call, w);
  });
}

}  // namespace pooled

void pooled_cosine(const Call& call, Element element, Pool size, Map map, const void* text, const void* frames,
                   const float* frame_mask, const float* kept, float* cosine, float* length) {
  const pooled::PackedRows rows = pooled::pack_rows(call, element, size, text, frames, kept == nullptr);
  pooled::cosine_of(call, element, pooled::one_problem(size), rows, size, map, frame_mask, kept, cosine, length);
}

}  // namespace emcl
