// Cosine of mapped texts with mapped pooled frames (docs/math.md, PN, PL).
#include "cuda/pooled/pooled_weights.cuh"

namespace emcl {
namespace pooled {
namespace {

struct Comparison {
  Problems problems;
  Matrix16 rows;  // frames, then texts
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

// Shared memory of a block.
template <class P>
struct Layout {
  static constexpr int kInner = std::max(P::kBytes, BasesTile<P>::kBytes);  // before it, one product after the other
  static constexpr int kColumns = kInner + P::WARPS_N * InnerTile<P>::kBytes;
  static constexpr int kBytes = kColumns + 2 * P::kColumns * int(sizeof(float));
  static_assert(kBytes <= kNeededShared);
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
  float* scale = mask + P::kColumns;
  load_columns(group_of(problems.frames, videos, own_group), w.frame_mask + frame_row, mask, thread_of_group<P>());
  if (w.scale != nullptr)
    load_columns(group_of(problems.frames, videos, own_group), w.scale + frame_row, scale, thread_of_group<P>());
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
#pragma unroll
      for (int four = 0; four < 8; four += 4) {  // videos, one for each lane of a text
        const int video = four + lane_of() % 4;
        if (video * tiles >= 8 || video >= group.videos || text + half >= texts.count) continue;
        const float numerator = of_video(numerators, video, tiles), square = of_video(squares, video, tiles),
                    length = sqrtf(square > kTiny * kTiny ? square : kTiny * kTiny);
        const int64_t pair =
            int64_t(texts.first + text + half) * problems.videos + videos.first + group.first_video + video;
        w.cosine[pair] =
            numerator / (w.mapped.text_length[int64_t(local) * problems.text_block + text + half] * length);
        if (w.length != nullptr) w.length[pair] = length;
      }
    }
  }
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
