// What a fitted map makes of texts and frames, in its bases (docs/math.md, PC, PL).
#include "cuda/pooled/pooled_weights.cuh"

namespace emcl {
namespace pooled {
namespace {

constexpr int kSide = 16, kDepth = 128;
static_assert(kSide * kSide == kThreads);

// inner [problems, K, K] = rᵀ·r. Blocks of 16x16, the depth in steps of 128 through shared memory.
__global__ void __launch_bounds__(kThreads) inner_kernel(const float* r, int width, int num_bases, float* inner) {
  const int sides = (num_bases + kSide - 1) / kSide, thread = int(threadIdx.x);
  const int row = int(blockIdx.x) / sides * kSide, column = int(blockIdx.x) % sides * kSide;
  r += int64_t(blockIdx.y) * width * num_bases;
  float* lefts = reinterpret_cast<float*>(dynamic_shared());  // [kDepth, kSide]
  float* rights = lefts + kDepth * kSide;
  float sum = 0;
  for (int first = 0; first < width; first += kDepth) {
    for (int i = thread; i < kDepth * kSide; i += kThreads) {
      const int d = first + i / kSide, k = i % kSide;
      lefts[i] = d < width && row + k < num_bases ? r[int64_t(d) * num_bases + row + k] : 0.0f;
      rights[i] = d < width && column + k < num_bases ? r[int64_t(d) * num_bases + column + k] : 0.0f;
    }
    __syncthreads();
    for (int d = 0; d < kDepth; ++d) sum += lefts[d * kSide + thread / kSide] * rights[d * kSide + thread % kSide];
    __syncthreads();
  }
  const int i = row + thread / kSide, j = column + thread % kSide;
  if (i < num_bases && j < num_bases) inner[(int64_t(blockIdx.y) * num_bases + i) * num_bases + j] = sum;
}

struct Corrections {
  const float *r, *scale, *inner;  // [problems, D, K], [problems, K], [problems, K, K]
  float weight;
  int width, num_bases, padded;
  Matrix16 twice;  // [problems·D, 2·padded]: r and r·C
  Matrix16 once;   // r and r·E, or none
};

// Two bases for each thread.
__global__ void correct_kernel(const Corrections p) {
  const int pairs = p.padded / 2, index = int(blockIdx.x) * int(blockDim.x) + int(threadIdx.x);
  const int d = index / pairs, k = index % pairs * 2;
  if (d >= p.width) return;
  const int64_t problem = blockIdx.y, row = problem * p.width + d;
  const float *r = p.r + row * p.num_bases, *scale = p.scale + problem * p.num_bases,
              *inner = p.inner + problem * p.num_bases * p.num_bases;
  float own[2] = {}, once[2] = {}, twice[2] = {};
  for (int i = 0; i < 2; ++i)
    if (k + i < p.num_bases) {
      float sum = 0;
      for (int l = 0; l < p.num_bases; ++l) sum += r[l] * scale[l] * inner[int64_t(l) * p.num_bases + k + i];
      own[i] = r[k + i];
      once[i] = p.weight * scale[k + i] * own[i];
      twice[i] = 2 * once[i] + p.weight * scale[k + i] * (p.weight * sum);
    }
  store_pair<Exact>(p.twice, row, k, own[0], own[1]);
  store_pair<Exact>(p.twice, row, p.padded + k, twice[0], twice[1]);
  if (p.once.numbers == nullptr) return;
  store_pair<Exact>(p.once, row, k, own[0], own[1]);
  store_pair<Exact>(p.once, row, p.padded + k, once[0], once[1]);
}

__global__ void transpose_kernel(Matrix16 x, int rows, int columns, Matrix16 out) {
  const int index = int(blockIdx.x) * int(blockDim.x) + int(threadIdx.x);
  const int row = index % int(out.stride), column = index / int(out.stride);
  if (column >= columns) return;
  for (int part = 0; part < x.parts; ++part)
    out.numbers[part * out.part + column * out.stride + row] =
        row < rows ? x.numbers[part * x.part + row * x.stride + column] : uint16_t(0);
}

// (PL) of the texts: one warp each. mapped [problems·text_block, 2·padded]: text·r, and that times C
__global__ void length_kernel(const Problems problems, Matrix16 rows, int width, Matrix16 mapped, int padded,
                              const Map map, float* length) {
  const int local = int(blockIdx.y), text = int(blockIdx.x) * (int(blockDim.x) / 32) + warp_of();
  const Range texts = texts_of(problems, local);
  if (text >= texts.count) return;
  const int64_t row = int64_t(problems.videos) * problems.frames.count + texts.first + text;
  const int64_t mapped_row = int64_t(local) * problems.text_block + text;
  float square = 0;
  if (map.weight < 0) {
    // Text and reconstruction may cancel, and then the quadratic form is lost in rounding.
    const float *r = map.responsibilities + int64_t(local) * width * map.num_bases,
                *scale = map.scale + local * map.num_bases;
    for (int d = lane_of(); d < width; d += 32) {
      float x = number(rows, row, d);
      for (int k = 0; k < map.num_bases; ++k)
        x += number(mapped, mapped_row, k) * (float(map.weight) * scale[k]) * r[d * map.num_bases + k];
      square += x * x;
    }
  } else {
    for (int d = lane_of(); d < width; d += 32) {
      const float x = number(rows, row, d);
      square += x * x;
    }
    for (int k = lane_of(); k < padded; k += 32)
      square += number(mapped, mapped_row, k) * number(mapped, mapped_row, padded + k);
  }
  for (int step = 16; step > 0; step /= 2) square += shuffle_xor(square, step);
  if (lane_of() == 0) length[mapped_row] = length_of_square(square);
}

}  // namespace

Mapped map_rows(const Call& call, const Problems& problems, const PackedRows& rows, int64_t width, const Map& map,
                bool twice) {
  Mapped mapped{};
  const int64_t padded = round_up(map.num_bases, 8), count = problems.count;
  mapped.num_bases = int(padded);
  mapped.text_length = allocate<float>(call, count * problems.text_block);
  if (map.num_bases > 0) {
    float* inner = allocate<float>(call, count * map.num_bases * map.num_bases);
    Launch inners{unsigned(divide_up(map.num_bases, kSide) * divide_up(map.num_bases, kSide)), unsigned(count)};
    inners.threads = kThreads;
    inners.shared = 2 * kDepth * kSide * sizeof(float);
    launch(call.stream, inners, inner_kernel, map.responsibilities, int(width), int(map.num_bases), inner);

    Corrections p{map.responsibilities, map.scale, inner, float(map.weight), int(width), int(map.num_bases),
                  int(padded),          {},        {}};
    p.twice = allocate_matrix(call, count * width, 2 * padded, Exact::count);
    if (!twice) p.once = allocate_matrix(call, count * width, 2 * padded, Exact::count);
    launch(call.stream, threads_for(width * padded / 2, count), correct_kernel, p);

    mapped.matrix = (twice ? p.twice : p.once).with_parts(small_parts(rows));
    const auto times = [&](RowsOf which, int64_t rows_of_problem, const Matrix16& right) {
      Product product{};
      product.left = rows.exact;
      product.left_rows = which;
      product.right = right.with_parts(small_parts(rows));
      product.right_step = int(width);
      product.rows = int(rows_of_problem);
      product.columns = int(2 * padded);
      product.depth = int(width);
      product.splits = 1;
      product.out = allocate_matrix(call, count * rows_of_problem, 2 * padded, small_parts(rows));
      multiply(call, problems, product);
      return product.out;
    };
    mapped.frames = times(RowsOf::frames, problems.frame_rows(), mapped.matrix);
    mapped.texts = times(RowsOf::texts, problems.text_block, p.twice);
  }
  launch(call.stream, warps_for(problems.text_block, count), length_kernel, problems, rows.exact, int(width),
         mapped.texts, int(padded), map, mapped.text_length);
  InnerProducts p{};
  p.left = p.frames = rows.exact;
  p.width = int(width);
  p.mapped = mapped.frames;
  p.num_bases = int(padded);
  p.squares = mapped.squares = allocate<float>(call, count * problems.groups() * kGroup);
  mapped.inner = inner_products(call, problems, p);
  return mapped;
}

Matrix16 transpose(const Call& call, const Matrix16& x, int64_t rows, int64_t columns) {
  const Matrix16 out = allocate_matrix(call, columns, rows, x.parts);
  launch(call.stream, threads_for(columns * out.stride), transpose_kernel, x, int(rows), int(columns), out);
  return out;
}

}  // namespace pooled
}  // namespace emcl
