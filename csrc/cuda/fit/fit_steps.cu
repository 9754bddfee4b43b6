// EM with one launch for each iteration (docs/math.md, GE and GM).
//
// Column sums run over all channels, which several blocks hold. Instead of a barrier, every block makes p of all
// channels itself, from gram·r of the launch before: p is cheap beside gram·p. The squared lengths come as one share of
// each block, and the next launch adds them in the order of the blocks.
#include "cuda/fit/fit_product.cuh"
#include "cuda/fit/fit_steps.h"

namespace emcl {
namespace {

// Rows of p, made from the step before.
template <class Product, int NT>
struct Softmax {
  const float* previous;  // [D, K]
  int width, num_bases, stride, first;
  float* own;  // [rows, pitch]  the block's own rows are kept here
  float factor[NT], sums[NT], raw[2][NT];

  __device__ __forceinline__ void load(int slot, int channel) {
    const int l = int(threadIdx.x) % 8;
#pragma unroll
    for (int i = 0; i < NT; ++i)
      raw[slot][i] = channel < width && l + 8 * i < num_bases ? previous[int64_t(channel) * stride + l + 8 * i] : 0.0f;
  }
  __device__ __forceinline__ void make(int slot, int channel, float (&p)[NT]) {
    const int l = int(threadIdx.x) % 8;
#pragma unroll
    for (int i = 0; i < NT; ++i) p[i] = rounded_product(raw[slot][i], factor[i]);
    softmax(p, l, num_bases);
    const bool is_own = channel >= first && channel < first + Product::kRows;
#pragma unroll
    for (int i = 0; i < NT; ++i) {
      if (channel >= width) p[i] = 0;
      sums[i] += p[i];
      if (is_own) own[(channel - first) * Product::kThinPitch + l + 8 * i] = p[i];
    }
  }
};

template <int MT, int NT>
__global__ void __launch_bounds__(32 * kFitWarps, NT <= 4 ? 2 : 1) fit_step_kernel(Step step) {
  using Product = ThinProduct<MT, NT, false>;
  constexpr int kColumns = Product::kColumns, kPitch = Product::kThinPitch;
  const int thread = int(threadIdx.x), l = thread % 8, num_bases = step.num_bases, width = step.width;
  const int block = int(blockIdx.x % unsigned(step.blocks));
  const int64_t problem = blockIdx.x / unsigned(step.blocks), shares = problem * step.blocks * num_bases;
  float* memory = reinterpret_cast<float*>(dynamic_shared());
  float* own = memory + Product::kStreamed;             // [rows, pitch]
  float* column_sums = own + Product::kRows * kPitch;   // [warps, columns]
  float* squares = column_sums + kFitWarps * kColumns;  // [row tiles, columns]
  float* factor = squares + MT * kColumns;              // [columns]
  float* inverse = factor + kColumns;                   // [columns]

  for (int k = thread / 8; k < kColumns; k += 4 * kFitWarps) {
    float value = step.inverse_temperature;
    if (step.previous_squares != nullptr)
      value /= step.eps + root(sum_of_shares(step.previous_squares + shares, step.blocks, num_bases, k, l));
    // Of a basis that has no channel it may overflow, and what it multiplies is zero; NaN stays NaN.
    constexpr float kLargest = 3.4028234e38f;  // of float32
    if (l == 0) factor[k] = value > kLargest ? kLargest : value;
  }
  __syncthreads();

  const Product product{step.gram + problem * width * width, width, block * Product::kRows, step.aligned, memory};
  Softmax<Product, NT> p{step.previous + problem * width * step.previous_stride,
                         width,
                         num_bases,
                         step.previous_stride,
                         product.first,
                         own,
                         {},
                         {},
                         {}};
#pragma unroll
  for (int i = 0; i < NT; ++i) p.factor[i] = factor[l + 8 * i];
  product.run(p);
#pragma unroll
  for (int i = 0; i < NT; ++i) {
    const float sum = sum_lanes<8, 16>(p.sums[i]);
    if (thread % 32 < 8) column_sums[thread / 32 * kColumns + l + 8 * i] = sum;
  }
  __syncthreads();
  for (int k = thread; k < kColumns; k += Product::kThreads) {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < kFitWarps; ++warp) sum += column_sums[warp * kColumns + k];
    inverse[k] = 1.0f / (step.eps + sum);
    if (step.column_sums != nullptr && block == 0 && k < num_bases) step.column_sums[problem * num_bases + k] = sum;
  }
  __syncthreads();

  product.for_each([&](int m, int row, int column, const float4& g) {
    float length[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float factor = inverse[column + j];
      const float upper = (j ? g.y : g.x) * factor, lower = (j ? g.w : g.z) * factor;
      const float* r = own + row * kPitch + column + j;
      const float upper_r = r[0] * factor, lower_r = r[8 * kPitch] * factor;
      length[j] = sum_lanes<4, 16>(upper_r * upper + lower_r * lower);
      const auto write = [&](int channel, float value, float r) {
        if (channel >= width || column + j >= step.stored) return;
        const int64_t to = (problem * width + channel) * step.stride + column + j;
        step.product[to] = value;
        if (step.responsibilities != nullptr) step.responsibilities[to] = r;
      };
      write(product.first + row, upper, upper_r);
      write(product.first + row + 8, lower, lower_r);
    }
    if (thread % 32 < 4) {
      squares[m * kColumns + column] = length[0];
      squares[m * kColumns + column + 1] = length[1];
    }
  });
  __syncthreads();
  for (int k = thread; k < num_bases; k += Product::kThreads) {
    float sum = 0;
#pragma unroll
    for (int m = 0; m < MT; ++m) sum += squares[m * kColumns + k];
    step.squares[shares + block * num_bases + k] = sum;
  }
}

__global__ void __launch_bounds__(256)
    fit_scale_kernel(const float* squares, int64_t count, int blocks, int num_bases, float eps, float* scale) {
  const int64_t index = int64_t(blockIdx.x) * 32 + threadIdx.x / 8;  // of a problem's basis
  const bool inside = index < count;
  const int64_t problem = inside ? index / num_bases : 0;
  const int k = inside ? int(index % num_bases) : 0, l = int(threadIdx.x) % 8;
  const float length = root(sum_of_shares(squares + problem * blocks * num_bases, blocks, num_bases, k, l));
  if (inside && l == 0) scale[index] = 1.0f / (eps + length);
}

}  // namespace

void launch_step(const Call& call, const StepShape& shape, const Step& step, int64_t problems) {
  const Launch blocks{.x = unsigned(problems * shape.blocks),
                      .threads = 32 * kFitWarps,
                      .shared = 4 * size_t(step_shared(shape.rows, shape.tiles, false))};
  with_step_tiles(shape, [&](auto mt, auto nt) { launch(call.stream, blocks, fit_step_kernel<mt(), nt()>, step); });
}

Step first_step(const StepShape& shape, const float* gram, const float* logits, int64_t width, int64_t num_bases,
                const Settings& settings) {
  Step step{};
  step.gram = gram;
  step.previous = logits;
  step.width = int(width);
  step.num_bases = step.stored = step.stride = step.previous_stride = int(num_bases);
  step.blocks = shape.blocks;
  step.inverse_temperature = float(1 / settings.temperature);
  step.eps = float(settings.eps);
  step.aligned = rows_are_aligned(gram, width);
  return step;
}

void fit_in_steps(const Call& call, const StepShape& shape, const float* gram, const float* logits, int64_t problems,
                  int64_t width, int64_t num_bases, const Settings& settings, float* responsibilities, float* scale) {
  const int64_t size = width * num_bases, group = shape.problems, shares = group * shape.blocks * num_bases;
  float* products = floats(call, 2 * group * size);
  float* squares = floats(call, 2 * shares);
  for (int64_t first = 0; first < problems; first += group) {
    const int64_t count = std::min(group, problems - first);
    Step step = first_step(shape, gram + first * width * width, logits + first * size, width, num_bases, settings);
    for (int64_t t = 0; t < settings.num_iters; ++t) {
      step.product = products + t % 2 * group * size;
      step.squares = squares + t % 2 * shares;
      step.responsibilities = t + 1 == settings.num_iters ? responsibilities + first * size : nullptr;
      launch_step(call, shape, step, count);
      step.previous = step.product;
      step.previous_squares = step.squares;
    }
    const Launch blocks{.x = unsigned((count * num_bases + 31) / 32), .threads = 256};
    launch(call.stream, blocks, fit_scale_kernel, step.previous_squares, count * num_bases, shape.blocks,
           int(num_bases), step.eps, scale + first * num_bases);
  }
}

}  // namespace emcl
