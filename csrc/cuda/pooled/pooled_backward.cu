// Gradients of the pooled moments and of the cosine (docs/math.md, PB, PM).
//
// Both run back through the frame weights in the same way: a kernel makes `through` [frames, texts], with which texts
// and frames are added to each other's gradients, for as many videos at a time as fit into bounded memory.
#include <algorithm>

#include "cuda/pooled/pooled_weights.cuh"

namespace emcl {
namespace pooled {
namespace {

// Of `through` at a time; few in the emulator, so that its small sizes are taken in parts too.
#if defined(EMCL_EMULATED)
constexpr int64_t kHeldBytes = 4 << 10;
#else
constexpr int64_t kHeldBytes = 256 << 20;
#endif

struct Backward {
  Problems problems;  // one, with the videos at hand
  Matrix16 rows;      // of all frames, then of the texts
  const float* scale;
  int first_frame, text_row, width;  // where the frames at hand and the texts start
  const float* frame_mask;           // [videos, F]
  const float* kept;                 // [videos·F, A]: inner products as the moments left them, or null
  float inverse_temperature;
  int splits, tiles;        // parts of the texts, and tiles of each
  Matrix16 inner;           // InnerProducts
  Matrix16 through;         // [videos·F, A]
  float *squares, *counts;  // [splits, groups·64, padded frames] and [splits, groups·64]: see Squares
  // of the moments
  const float* shift;  // [videos, F]: added to the gradient of every weight
  // of the cosine
  Matrix16 mapped_texts, mapped_frames;  // [A, bases], [videos·F, bases]
  int num_bases;
  const float *d_cosine, *cosine, *length;  // [A, videos], rows of stride `pairs`
  int64_t pairs;
  const float* text_length;  // [A]
  Matrix16 weights;          // [videos·F, A], rows as those of through: of the numerator alone, with bases
};

// What the gradient of the cosine of one pair is to its numerator, and twice what it is to the pooled frame's square.
struct PairGradient {
  float numerator, square;
};
// by_text: 1 / the text's length
__device__ __forceinline__ PairGradient pair_gradient(const Backward& w, int text, int video, float by_text) {
  const int64_t pair = text * w.pairs + video;
  const float d = w.d_cosine[pair], length = w.length[pair], by_length = 1 / length;
  // a length at its lower bound is a constant
  return {d * by_text * by_length, length > kTiny ? -d * w.cosine[pair] * by_length * by_length : 0.0f};
}

// Shared memory of a block.
template <class P, bool COSINE>
struct Layout {
  // the pulls on the map are small differences of what is summed up here
  using Weights = std::conditional_t<COSINE, SmallParts<typename P::LeftParts>, Split>;
  using Texts = TextTile<P, Weights>;
  static constexpr int kInner =
      std::max({P::kBytes, BasesTile<P>::kBytes, 2 * Texts::kBytes});  // before it, one after the other
  static constexpr int kColumns = kInner + P::WARPS_N * InnerTile<P>::kBytes;
  static constexpr bool kScaled = std::is_same_v<typename P::LeftParts, Scaled>;
  static constexpr int kBytes = kColumns + (1 + kScaled + !COSINE) * P::kColumns * int(sizeof(float));
  static_assert(kBytes <= kNeededShared);
};

template <class P, bool COSINE>
__global__ void __launch_bounds__(P::kThreads, 1) backward_kernel(const Backward w) {
  const Problems& problems = w.problems;
  const int split = int(blockIdx.x) % w.splits, own_group = int(blockIdx.x) / w.splits * P::WARPS_N + P::warp_n();
  const Range videos{0, problems.videos};

  using L = Layout<P, COSINE>;
  using Weights = typename L::Weights;
  char* memory = dynamic_shared();
  const typename L::Texts tile(memory), scaled_tile(memory + tile.kBytes);
  const InnerTile<P> inner(memory + L::kInner + P::warp_n() * InnerTile<P>::kBytes);
  float* mask = reinterpret_cast<float*>(memory + L::kColumns) + P::warp_n() * kGroup;
  float *scale = mask + P::kColumns, *shift = L::kScaled ? scale + P::kColumns : scale;  // where there are any
  load_columns(group_of(problems.frames, videos, own_group), w.frame_mask, mask, thread_of_group<P>());
  if (L::kScaled && w.kept == nullptr)
    load_columns(group_of(problems.frames, videos, own_group), w.scale + w.first_frame, scale, thread_of_group<P>());
  if (!COSINE) load_columns(group_of(problems.frames, videos, own_group), w.shift, shift, thread_of_group<P>());
  load_inner<P>(w.inner, own_group, own_group < problems.groups(), inner);

  Squares<P, Weights> squares;
  for (int index = 0; index < w.tiles; ++index) {
    const int first = (split * w.tiles + index) * P::kRows;
    if (first >= problems.texts) break;
    const TileRows tile_rows{problems.frames, videos, own_group - P::warp_n(), first, problems.texts};
    const auto text_at = [&](int row) { return tile_rows.text(row, w.text_row); };
    const auto frame_at = [&](int column) { return tile_rows.frame(column, w.first_frame); };
    float dots[P::M][8][4] = {};
    if (w.kept == nullptr) {
      P::template run<(P::LeftParts::count > 1)>(memory, dots, Operand{w.rows, text_at}, Operand{w.rows, frame_at},
                                                 w.width);
    } else if (index == 0) {  // for what was loaded above
      copies_wait<0>();
      __syncthreads();
    }
    // Not unrolled, so that the code stays in the instruction cache: the fragments pass by in dots[0].
#pragma unroll 1
    for (int m = 0; m < P::M; ++m, next_fragment(dots)) {
      const Group group = group_afresh(problems.frames, videos, own_group);
      const int first_text = first + (P::warp_m() * P::M + m) * 16, text = first_text + own_text(0);
      const int tiles = group.tiles();
      if (w.kept == nullptr) {
        unscale<typename P::LeftParts>(dots[0], w.scale + w.text_row + first_text, problems.texts - first_text, scale);
      } else {
        take_products(w.kept, group, text, problems.texts, problems.texts, dots[0]);
      }
      float soft[8][4], change[8][4] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) soften(dots[0], half, group, w.inverse_temperature, soft);
      if (COSINE && w.num_bases > 0) {
        const auto mapped_text = [&](int row) { return tile_rows.text(row / 16 * 16 * P::M + 16 * m + row % 16, 0); };
        const auto mapped_frame = [&](int column) { return tile_rows.frame(column, 0); };
        auto& corrected = reinterpret_cast<float (&)[1][8][4]>(dots[0]);
        BasesTile<P>::template run<false>(memory, corrected, Operand{w.mapped_texts, mapped_text},
                                          Operand{w.mapped_frames, mapped_frame}, w.num_bases);
      }
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) soft[n][i] = text + i / 2 < problems.texts ? soft[n][i] : 0.0f;
      {
        float weights[8][4];
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) weights[n][i] = soft[n][i] * mask[own_column(n, i)];
        multiply_inner(weights, inner, tiles, change);
      }

      // From here on `change` is the gradient to soft, and `dots` the numerator's gradient times weights. Those are
      // made again, there are no registers to keep them.
      const float* own_mask = mask + afresh(0);
      float sums[2][8] = {};
      PairGradient pair[2] = {{0, 1}, {0, 1}};
      float by_text[2] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (COSINE && text + half < problems.texts) by_text[half] = 1 / w.text_length[text + half];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        if (COSINE && (n & (tiles - 1)) == 0) {
          const int video = group.video(own_column(n, 0));
#pragma unroll
          for (int half = 0; half < 2; ++half)
            pair[half] = text + half < problems.texts && video < group.videos
                             ? pair_gradient(w, text + half, group.first_video + video, by_text[half])
                             : PairGradient{0, 0};
        }
        float weights[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = own_column(n, i);
          weights[i] = soft[n][i] * own_mask[column];
          float d_weight = pair[i / 2].square * change[n][i];
          if (COSINE) {
            d_weight += pair[i / 2].numerator * dots[0][n][i];
            dots[0][n][i] = pair[i / 2].numerator * weights[i];
          } else {
            d_weight += shift[column];
          }
          change[n][i] = d_weight * own_mask[column];
          sums[i / 2][n] += change[n][i] * soft[n][i];
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          put_pair<P>(tile, n, i, weights[i], weights[2 + i]);
          if (COSINE) put_pair<P>(scaled_tile, n, i, pair[0].square * weights[i], pair[1].square * weights[2 + i]);
        }
      }

      const Group again = group_afresh(problems.frames, videos, own_group);
      over_video(sums[0], tiles, Sum());
      over_video(sums[1], tiles, Sum());
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float through[2];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int at = 2 * half + i;
            through[half] = soft[n][at] * (change[n][at] - sums[half][n]) * w.inverse_temperature;
            if (COSINE) through[half] += dots[0][n][at];
          }
          const int row = again.row(own_column(n, i));
          if (row >= 0 && text < w.through.stride) {
            const int64_t place = row * w.through.stride + text;
            store_pair_at<Exact>(w.through, place, through[0], through[1], w.through.parts);
            if (COSINE && w.num_bases > 0) store_pair_at<Weights>(w.weights, place, dots[0][n][i], dots[0][n][2 + i]);
          }
        }
      __syncthreads();
      squares.add(COSINE ? scaled_tile : tile, tile, tiles);
      __syncthreads();
    }
  }
  if (own_group < problems.groups()) {
    const int64_t part = int64_t(split) * problems.groups() + own_group;
    squares.write(
        group_of(problems.frames, videos, own_group), [](int) { return 1.0f; },
        w.squares + (part * kGroup << problems.frames.padded_log), w.counts + part * kGroup);
  }
}

// One warp for each text: sums [A] = −Σ over videos of d_cosine·cosine / length², zero at the lower bound.
__global__ void text_square_kernel(int texts, int64_t videos, const float* d_cosine, const float* cosine,
                                   const float* length, float* sums) {
  const int text = int(blockIdx.x) * int(blockDim.x / 32) + warp_of();
  if (text >= texts) return;
  float sum = 0;
  for (int64_t video = lane_of(); video < videos; video += 32)
    sum -= d_cosine[text * videos + video] * cosine[text * videos + video];
  for (int step = 16; step > 0; step /= 2) sum += shuffle_xor(sum, step);
  if (lane_of() == 0) sums[text] = length[text] > kTiny ? sum / (length[text] * length[text]) : 0.0f;
}

// pull [A, K] = Σ parts + scale·(t·r)
__global__ void text_pull_kernel(const float* parts, int splits, const float* scale, Matrix16 mapped_texts, int texts,
                                 int num_bases, float* pull) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, size = int64_t(texts) * num_bases;
  if (i >= size) return;
  float sum = scale[i / num_bases] * number(mapped_texts, i / num_bases, i % num_bases);
  for (int split = 0; split < splits; ++split) sum += parts[split * size + i];
  pull[i] = sum;
}

// One warp for each row: out [rows] = x·vector
__global__ void dot_kernel(Matrix16 x, int rows, int width, const float* vector, float* out) {
  const int row = int(blockIdx.x) * int(blockDim.x / 32) + warp_of();
  if (row >= rows) return;
  float sum = 0;
  for (int d = lane_of(); d < width; d += 32) sum += number(x, row, d) * vector[d];
  for (int step = 16; step > 0; step /= 2) sum += shuffle_xor(sum, step);
  if (lane_of() == 0) out[row] = sum;
}

// The videos that are taken at a time: whole groups.
int64_t videos_at_a_time(const Pool& size, const Frames& frames) {
  const int64_t bytes_of_video = size.frames * round_up(size.texts, 8) * 4, step = 2 * frames.videos_of_group();
  return std::min<int64_t>(size.videos, std::max<int64_t>(1, kHeldBytes / (bytes_of_video * step)) * step);
}

// Parts of `through`. Two are wrong by about 4e-6 of a gradient, which the rounding of 16-bit rows hides; where there
// are few pairs, three cost nothing that counts.
int through_parts(Element element, const Pool& size) {
  return element == Element::float32 && size.texts * size.videos * size.frames <= int64_t(1) << 20 ? 3 : 2;
}

// What both gradients need of the videos at hand.
struct Chunk {
  Problems problems;
  int first_video, first_frame, frame_rows, first_group;
};
// f(chunk) for all videos.
template <class F>
void each_chunk(const Pool& size, const F& f) {
  Problems problems = one_problem(size);
  const int step = int(videos_at_a_time(size, problems.frames));
  for (int first = 0; first < size.videos; first += step) {
    problems.videos = problems.video_block = std::min(step, int(size.videos) - first);
    f(Chunk{problems, first, first * problems.frames.count, problems.frame_rows(),
            first / problems.frames.videos_of_group()});
  }
}

Backward backward_of(const Pool& size, const Chunk& chunk, const PackedRows& rows, const float* frame_mask,
                     const float* kept, const Matrix16& inner, const Matrix16& through) {
  Backward w{};
  w.problems = chunk.problems;
  w.rows = rows.own;
  w.scale = rows.scale;
  w.first_frame = chunk.first_frame;
  w.text_row = int(size.videos * size.frames);
  w.width = int(size.width);
  w.frame_mask = frame_mask + chunk.first_frame;
  w.kept = kept == nullptr ? nullptr : kept + chunk.first_frame * size.texts;
  w.inverse_temperature = float(1 / size.temperature);
  w.inner = inner.from_row(int64_t(chunk.first_group) * kGroup);
  w.through = through;
  return w;
}

// Fills `through`, and gives Σ of what is in Squares.
template <bool COSINE>
Squares16 run_backward(const Call& call, Element element, Backward w) {
  Squares16 sums{};
  with_element(element, [&](auto zero) {
    using P = LargeTile<OwnRows<decltype(zero)>>;
    const Problems& problems = w.problems;
    const int64_t blocks = divide_up(problems.groups(), P::WARPS_N);
    const Splits splits = split_rows(blocks, problems.texts, P::kRows, P::kRows / 2);
    w.splits = int(splits.count);
    w.tiles = int(splits.rows / P::kRows);
    w.squares = allocate<float>(call, splits.count * problems.groups() * kGroup << problems.frames.padded_log);
    w.counts = allocate<float>(call, splits.count * problems.groups() * kGroup);
    Launch shape{unsigned(blocks * splits.count)};
    shape.threads = P::kThreads;
    shape.shared = Layout<P, COSINE>::kBytes;
    launch(call.stream, shape, backward_kernel<P, COSINE>, w);
    sums = sum_squares(call, problems, w.squares, w.counts, w.splits);
  });
  return sums;
}

// sums [rows, columns] = left·right, or added to it
Product plain_product(const Matrix16& left, const Matrix16& right, int64_t rows, int64_t columns, int64_t depth,
                      float* sums, bool add) {
  Product p{};
  p.left = left;
  p.right = right;
  p.left_rows = RowsOf::all;
  p.rows = int(rows);
  p.left_step = int(rows);
  p.columns = int(columns);
  p.depth = int(depth);
  p.splits = 1;
  p.sums = sums;
  p.add = add;
  return p;
}

// Σ over chunks of leftᵀ·right, in parts of the depth.
class TransposedSum {
 public:
  TransposedSum(const Call& call, int64_t rows, int64_t columns, int64_t depth)
      : rows_(rows),
        columns_(columns),
        splits_(int(
            split_rows(divide_up(rows, 128) * divide_up(columns, columns <= kGroup ? 64 : 128), depth, 32, 256).count)),
        parts_(allocate<float>(call, splits_ * rows * columns)) {}
  void add(const Call& call, const Problems& problems, const Matrix16& left, const Matrix16& right, int64_t depth) {
    Product p = plain_product(left, right, rows_, columns_, depth, parts_, started_);
    p.transposed = true;
    p.left_step = int(depth);
    p.splits = splits_;
    multiply(call, problems, p);
    started_ = true;
  }
  float* parts() const { return parts_; }
  int splits() const { return splits_; }

 private:
  int64_t rows_, columns_;
  int splits_;
  float* parts_;
  bool started_ = false;
};

SquareTimes times_squares(const Matrix16& squares, const Matrix16& rows, int64_t columns, float* sums, bool add) {
  SquareTimes p{};
  p.squares = squares;
  p.rows = rows;
  p.columns = int(columns);
  p.sums = sums;
  p.add = add;
  return p;
}

}  // namespace
}  // namespace pooled

void pooled_moments_backward(const Call& call, Element element, Pool size, const void* text, const void* frames,
                             const float* frame_mask, const float* kept, const float* d_gram, const float* d_colsum,
                             void* d_text, void* d_frames) {
  using namespace pooled;
  const int64_t texts = size.texts, width = size.width, frame_rows = size.videos * size.frames;
  const Problems all = one_problem(size);
  const PackedRows rows = pack_rows(call, element, size, text, frames, kept == nullptr);
  const int small = small_parts(rows), parts = through_parts(element, size);
  const Matrix16 packed = rows.exact.with_parts(parts), packed_texts = packed.from_row(frame_rows);
  const Matrix16 twice = pack_symmetric(call, d_gram, width, small);

  const Matrix16 frames_twice = allocate_matrix(call, frame_rows, width, small);
  Product mapped = plain_product(rows.exact, twice, frame_rows, width, width, nullptr, false);
  mapped.out = frames_twice;
  multiply(call, all, mapped);
  InnerProducts inner{};
  inner.left = frames_twice;
  inner.frames = rows.exact;
  inner.width = int(width);
  const Matrix16 products = inner_products(call, all, inner);
  float* shift = allocate<float>(call, frame_rows);
  launch(call.stream, warps_for(frame_rows), dot_kernel, rows.exact, int(frame_rows), int(width), d_colsum, shift);

  TransposedSum text_sum(call, d_text ? texts : 1, width, frame_rows);
  const int64_t held = std::min(frame_rows, videos_at_a_time(size, all.frames) * size.frames);
  const Matrix16 through = allocate_matrix(call, held, texts, parts);
  float* frame_sum = allocate<float>(call, d_frames ? held * width : 0);
  Reused workspace(call);
  each_chunk(size, [&](const Chunk& chunk) {
    const Call& step = workspace.next_step();
    Backward w = backward_of(size, chunk, rows, frame_mask, kept, products, through);
    w.shift = shift + chunk.first_frame;
    const Squares16 sums = run_backward<false>(step, element, w);

    if (d_frames) {
      multiply_squares(step, chunk.problems,
                       times_squares(sums.squares, frames_twice.from_row(chunk.first_frame), width, frame_sum, false));
      multiply(step, chunk.problems,
               plain_product(through, packed_texts, chunk.frame_rows, width, texts, frame_sum, true));
      char* out = static_cast<char*>(d_frames) + chunk.first_frame * width * bytes_of(element);
      finish_rows(step, element, {frame_sum, 1, nullptr, nullptr, sums.counts, d_colsum}, chunk.frame_rows, width, out);
    }
    if (d_text) text_sum.add(step, chunk.problems, through, packed.from_row(chunk.first_frame), chunk.frame_rows);
  });
  if (d_text == nullptr) return;
  multiply(call, all,
           plain_product(rows.exact.from_row(frame_rows), twice, texts, width, width, text_sum.parts(), true));
  finish_rows(call, element, {text_sum.parts(), text_sum.splits(), nullptr, nullptr, nullptr, d_colsum}, texts, width,
              d_text);
}

void pooled_cosine_backward(const Call& call, Element element, Pool size, Map map, bool linear, const float* d_cosine,
                            const float* cosine, const float* length, const void* text, const void* frames,
                            const float* frame_mask, const float* kept, void* d_text, void* d_frames, float* pull_text,
                            float* pull_frames) {
  using namespace pooled;
  const int64_t texts = size.texts, width = size.width, frame_rows = size.videos * size.frames,
                num_bases = map.num_bases;
  const Problems all = one_problem(size);
  const PackedRows rows = pack_rows(call, element, size, text, frames, kept == nullptr);
  const int small = small_parts(rows), parts = through_parts(element, size);
  const Matrix16 packed = rows.exact.with_parts(parts), packed_texts = packed.from_row(frame_rows);
  const Mapped mapped = map_rows(call, all, rows, width, map, linear);
  Matrix16 map_transposed{};  // (r·M)ᵀ
  if (num_bases > 0)
    map_transposed = transpose(call, mapped.matrix.from_column(mapped.num_bases), width, mapped.num_bases);
  const bool to_texts = d_text || pull_text, to_frames = d_frames || pull_frames;
  float* text_squares = allocate<float>(call, texts);
  if (to_texts)
    launch(call.stream, warps_for(texts), text_square_kernel, int(texts), size.videos, d_cosine, cosine,
           mapped.text_length, text_squares);

  // A gradient takes the pull of its own side, which is written elsewhere if it is not needed itself.
  if (to_texts && pull_text == nullptr) pull_text = allocate<float>(call, texts * num_bases);
  if (to_frames && pull_frames == nullptr) pull_frames = allocate<float>(call, frame_rows * num_bases);
  TransposedSum text_sum(call, d_text ? texts : 1, width, frame_rows),
      pull_sum(call, to_texts ? texts : 1, std::max<int64_t>(num_bases, 1), frame_rows);
  const int64_t held = std::min(frame_rows, videos_at_a_time(size, all.frames) * size.frames);
  const Matrix16 through = allocate_matrix(call, held, texts, parts),
                 weights = allocate_matrix(call, num_bases > 0 ? held : 1, texts, small);
  float* frame_sum = allocate<float>(call, d_frames ? held * width : 0);
  Reused workspace(call);
  each_chunk(size, [&](const Chunk& chunk) {
    const Call& step = workspace.next_step();
    Backward w = backward_of(size, chunk, rows, frame_mask, kept, mapped.inner, through);
    w.num_bases = mapped.num_bases;
    w.mapped_texts = mapped.texts;
    if (num_bases > 0) w.mapped_frames = mapped.frames.from_row(chunk.first_frame).from_column(mapped.num_bases);
    w.d_cosine = d_cosine + chunk.first_video;
    w.cosine = cosine + chunk.first_video;
    w.length = length + chunk.first_video;
    w.pairs = size.videos;
    w.text_length = mapped.text_length;
    w.weights = weights;
    const Squares16 sums = run_backward<true>(step, element, w);

    const Matrix16 mapped_frames = num_bases > 0 ? mapped.frames.from_row(chunk.first_frame) : Matrix16{};
    if (d_frames) {
      multiply_squares(step, chunk.problems,
                       times_squares(sums.squares, rows.exact.from_row(chunk.first_frame), width, frame_sum, false));
      multiply(step, chunk.problems,
               plain_product(through, packed_texts, chunk.frame_rows, width, texts, frame_sum, true));
    }
    if (to_frames && num_bases > 0) {
      float* pull = pull_frames + chunk.first_frame * num_bases;
      multiply_squares(step, chunk.problems, times_squares(sums.squares, mapped_frames, num_bases, pull, false));
      multiply(step, chunk.problems,
               plain_product(weights, mapped.texts, chunk.frame_rows, num_bases, texts, pull, true));
      if (d_frames) {
        const Matrix16 packed_pull = pack_matrix(step, pull, chunk.frame_rows, num_bases, small);
        multiply(step, chunk.problems,
                 plain_product(packed_pull, map_transposed, chunk.frame_rows, width, num_bases, frame_sum, true));
      }
    }
    if (d_frames) {
      char* out = static_cast<char*>(d_frames) + chunk.first_frame * width * bytes_of(element);
      finish_rows(step, element, {frame_sum, 1, nullptr, nullptr, nullptr, nullptr}, chunk.frame_rows, width, out);
    }

    if (d_text) text_sum.add(step, chunk.problems, through, packed.from_row(chunk.first_frame), chunk.frame_rows);
    if (to_texts && num_bases > 0) pull_sum.add(step, chunk.problems, weights, mapped_frames, chunk.frame_rows);
  });

  if (!to_texts) return;
  if (num_bases > 0) {
    launch(call.stream, threads_for(texts * num_bases), text_pull_kernel, pull_sum.parts(), pull_sum.splits(),
           text_squares, mapped.texts, int(texts), int(num_bases), pull_text);
    if (d_text == nullptr) return;
    const Matrix16 packed_pull = pack_matrix(call, pull_text, texts, num_bases, small);
    multiply(call, all, plain_product(packed_pull, map_transposed, texts, width, num_bases, text_sum.parts(), true));
  }
  if (d_text)
    finish_rows(call, element, {text_sum.parts(), text_sum.splits(), text_squares, text, nullptr, nullptr}, texts,
                width, d_text);
}

}  // namespace emcl
