// Moments of the pooled rows (docs/math.md, PW, PG, PS): frame weights tile by tile, F×F sums per video, and with them
// one product over the rows of frames and texts.
#include "cuda/pooled/pooled_weights.cuh"

namespace emcl {
namespace pooled {
namespace {

struct Weighing {
  Problems problems;
  Matrix16 rows;  // frames, then texts
  const float* scale;
  int width;
  const float* frame_mask;
  float inverse_temperature;
  int splits, tiles;  // parts of the texts, and tiles of each
  float* kept;        // [problems, frame_rows, text_block]: the inner products, or null
  float* squares;     // [problems, splits, groups, 64, padded frames]
  float* counts;      // [problems, splits, groups, 64]
};

// What softmax gives is summed up, and the mask taken in afterwards, so that float16 need only hold numbers up to this.
constexpr float kSummed = 4096;

template <class P>
__global__ void __launch_bounds__(P::kThreads, 1) weigh_kernel(const Weighing w) {
  const Problems& problems = w.problems;
  const int local = int(blockIdx.y), groups = problems.groups();
  const int split = int(blockIdx.x) % w.splits, own_group = int(blockIdx.x) / w.splits * P::WARPS_N + P::warp_n();
  const Range texts = texts_of(problems, local), videos = videos_of(problems, local);
  const int frame_row = videos.first * problems.frames.count,
            text_row = problems.videos * problems.frames.count + texts.first;

  char* memory = dynamic_shared();
  const TextTile<P, Scaled> tile(memory);
  static_assert(tile.kBytes <= P::kBytes);
  float* mask = reinterpret_cast<float*>(memory + P::kBytes) + P::warp_n() * kGroup;
  float* scale = mask + P::kColumns;
  load_columns(group_of(problems.frames, videos, own_group), w.frame_mask + frame_row, mask, thread_of_group<P>());
  if (w.scale != nullptr)
    load_columns(group_of(problems.frames, videos, own_group), w.scale + frame_row, scale, thread_of_group<P>());
  __syncthreads();  // a split of a smaller block may have no texts, and so none of the loop's barriers

  Squares<P, Scaled> squares;
  for (int index = 0; index < w.tiles; ++index) {
    const int first = (split * w.tiles + index) * P::kRows;
    if (first >= texts.count) break;
    const TileRows tile_rows{problems.frames, videos, own_group - P::warp_n(), first, texts.count};
    const auto text_at = [&](int row) { return tile_rows.text(row, text_row); };
    const auto frame_at = [&](int column) { return tile_rows.frame(column, frame_row); };
    float dots[P::M][8][4] = {};
    P::template run<(P::LeftParts::count > 1)>(memory, dots, Operand{w.rows, text_at}, Operand{w.rows, frame_at},
                                               w.width);
    // Not unrolled, so that the code stays in the instruction cache: the fragments pass by in dots[0].
#pragma unroll 1
    for (int m = 0; m < P::M; ++m, next_fragment(dots)) {
      const Group group = group_afresh(problems.frames, videos, own_group);
      const int first_text = first + (P::warp_m() * P::M + m) * 16, text = first_text + own_text(0);
      unscale<typename P::LeftParts>(dots[0], w.scale + text_row + first_text, texts.count - first_text, scale);
      if (w.kept != nullptr)
        keep_products(dots[0], group, text, texts.count, problems.text_block,
                      w.kept + int64_t(local) * problems.frame_rows() * problems.text_block);
      float soft[8][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) soften(dots[0], half, group, w.inverse_temperature, soft);
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) soft[n][i] *= text + i / 2 < texts.count ? kSummed : 0.0f;
      put_weights<P>(tile, soft);
      __syncthreads();
      squares.add(tile, tile, group.tiles());
      __syncthreads();
    }
  }
  if (own_group < groups) {
    const int64_t part = (int64_t(local) * w.splits + split) * groups + own_group;
    squares.write(
        group_of(problems.frames, videos, own_group), [&](int column) { return mask[column] / kSummed; },
        w.squares + (part * kGroup << problems.frames.padded_log), w.counts + part * kGroup);
  }
}

// Two columns for each thread, `step` rows for each block: Σ of count·frame and of texts.
constexpr int kSumThreads = 128;
__global__ void sum_rows_kernel(const Problems problems, Matrix16 rows, int width, const float* counts, int step,
                                float* parts) {
  const int local = int(blockIdx.z), column = (int(blockIdx.x) * int(blockDim.x) + int(threadIdx.x)) * 2;
  if (column >= width) return;
  const Range texts = texts_of(problems, local), videos = videos_of(problems, local);
  const int frames = videos.count * problems.frames.count, first = int(blockIdx.y) * step;
  const int last = first + step < frames + texts.count ? first + step : frames + texts.count;
  const int frame_row = videos.first * problems.frames.count;
  const int text_row = problems.videos * problems.frames.count + texts.first - frames;
  float sums[2] = {0, 0};
  for (int i = first; i < last; ++i) {
    const uint16_t* from = rows.numbers + int64_t(i + (i < frames ? frame_row : text_row)) * rows.stride + column;
    const float count = i < frames ? counts[int64_t(local) * problems.frame_rows() + i] : 1.0f;
    for (int part = rows.parts - 1; part >= 0; --part) {
      const uint32_t both = *reinterpret_cast<const uint32_t*>(from + part * rows.part);
      sums[0] += count * as_float(both << 16);
      sums[1] += count * as_float(both & 0xffff0000u);
    }
  }
  float* to = parts + (int64_t(local) * gridDim.y + blockIdx.y) * width + column;
  to[0] = sums[0];
  if (column + 1 < width) to[1] = sums[1];
}

// The texts below the frames of each problem, in all parts.
__global__ void copy_texts_kernel(const Problems problems, Matrix16 rows, int row_step, Matrix16 out) {
  const int local = int(blockIdx.y);
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, pieces = rows.stride / 8;
  const int64_t text = index / pieces, column = index % pieces * 8;
  const Range texts = texts_of(problems, local);
  if (text >= texts.count) return;
  const int64_t from = int64_t(problems.videos) * problems.frames.count + texts.first + text;
  const int64_t to = int64_t(local) * row_step + videos_of(problems, local).count * problems.frames.count + text;
  for (int part = 0; part < out.parts; ++part)
    *reinterpret_cast<uint4*>(out.numbers + part * out.part + to * out.stride + column) =
        part < rows.parts
            ? *reinterpret_cast<const uint4*>(rows.numbers + part * rows.part + from * rows.stride + column)
            : make_uint4(0, 0, 0, 0);
}

template <class P>
Squares16 weigh(const Call& call, Weighing w) {
  const Problems& problems = w.problems;
  const int64_t blocks = divide_up(problems.groups(), P::WARPS_N);
  const Splits splits = split_rows(problems.count * blocks, problems.text_block, P::kRows, P::kRows / 2);
  w.splits = int(splits.count);
  w.tiles = int(splits.rows / P::kRows);
  const int64_t rows = problems.count * splits.count * problems.groups() * kGroup;
  w.squares = allocate<float>(call, rows << problems.frames.padded_log);
  w.counts = allocate<float>(call, rows);
  Launch shape{unsigned(blocks * splits.count), unsigned(problems.count)};
  shape.threads = P::kThreads;
  constexpr size_t kShared = P::kBytes + 2 * P::kColumns * sizeof(float);
  static_assert(kShared <= kNeededShared);
  shape.shared = kShared;
  launch(call.stream, shape, weigh_kernel<P>, w);
  return sum_squares(call, problems, w.squares, w.counts, w.splits);
}

}  // namespace

void moments_of(const Call& call, Element element, const Problems& problems, const PackedRows& rows, const Pool& size,
                const float* frame_mask, float* gram, float* colsum, float* kept) {
  const int width = int(size.width), count = problems.count;
  Squares16 sums{};
  with_element(element, [&](auto zero) {
    using Numbers = OwnRows<decltype(zero)>;
    Weighing w{};
    w.problems = problems;
    w.rows = rows.own;
    w.scale = rows.scale;
    w.width = width;
    w.frame_mask = frame_mask;
    w.inverse_temperature = float(1 / size.temperature);
    w.kept = kept;
    sums = problems.text_block <= kSmallBlock ? weigh<SmallTile<Numbers>>(call, w) : weigh<LargeTile<Numbers>>(call, w);
  });

  // S·f below each other, and the texts as they are
  const int all = problems.frame_rows() + problems.text_block;
  const Matrix16 weighted = allocate_matrix(call, int64_t(count) * all, width, Exact::count);
  SquareTimes times{};
  times.squares = sums.squares;
  times.rows = rows.exact;
  times.columns = width;
  times.out_step = all;
  times.out = weighted;
  multiply_squares(call, problems, times);
  launch(call.stream, threads_for(problems.text_block * (weighted.stride / 8), count), copy_texts_kernel, problems,
         rows.exact, all, weighted);

  const int64_t tiles = divide_up(width, 128), pairs = tiles * (tiles + 1) / 2;
  Product product{};
  product.left = rows.exact;
  product.right = weighted;
  product.transposed = true;
  product.left_rows = RowsOf::frames_and_texts;
  product.right_step = all;
  product.rows = product.columns = width;
  product.depth = all;
  product.upper = true;
  product.splits = int(split_rows(count * pairs, all, 32, 256).count);
  product.sums = allocate<float>(call, int64_t(count) * product.splits * width * width);
  multiply(call, problems, product);
  add_upper_parts(call, product.sums, count, product.splits, width, gram);

  const int step = std::max(64, int(divide_up(all, 1024))), splits = int(divide_up(all, step));
  float* parts = allocate<float>(call, int64_t(count) * splits * width);
  Launch summed{unsigned(divide_up(width, 2 * kSumThreads)), unsigned(splits), unsigned(count)};
  summed.threads = kSumThreads;
  launch(call.stream, summed, sum_rows_kernel, problems, rows.exact, width, sums.counts, step, parts);
  add_parts(call, parts, count, splits, width, colsum);
}

}  // namespace pooled

void pooled_moments(const Call& call, Element element, Pool size, const void* text, const void* frames,
                    const float* frame_mask, float* gram, float* colsum, float* kept) {
  const pooled::PackedRows rows = pooled::pack_rows(call, element, size, text, frames);
  pooled::moments_of(call, element, pooled::one_problem(size), rows, size, frame_mask, gram, colsum, kept);
}

}  // namespace emcl
