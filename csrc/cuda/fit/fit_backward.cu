// Gradients of EM on a Gram matrix (docs/math.md, BE and BM): forward again, one launch for each iteration, keeping r
// and gram·r of all; then back through them with two launches each, one for every sum over all channels. The gradient
// to gram, Σ_t d_g_t·r_tᵀ, is one product at the end.
#include "cuda/fit/fit_deep_product.cuh"
#include "cuda/fit/fit_product.cuh"
#include "cuda/fit/fit_steps.h"

namespace emcl {
namespace {

// [P, D, T, stored]: channels are `stride` apart; an iteration's bases have zeros behind them up to a multiple of 4.
struct Kept {
  const float *responsibilities, *product;  // of one iteration
  int stride, stored;
};

// ---- (BM) -----------------------------------------------------------------------------------------------------------

struct BackwardMaximise {
  Kept kept;
  const float* gram;          // [P, D, D]
  const float* squares;       // [P, blocks, K]  shares of this iteration's squared lengths
  const float* d_logits;      // [P, D, K]  of the iteration after; null in the last
  const float* d_scale;       // [P, d_scale_shares, K]  shares of the gradient to the scale
  const float* d_result;      // [P, D, K]  gradient to the responsibilities that `fit` returns; null but in the last
  float* d_product;           // as `kept`  out
  float* d_responsibilities;  // [P, D, K]  out
  float* inner;               // [P, blocks, K]  out: shares of Σ_d d_responsibilities·responsibilities
  int width, num_bases, blocks, d_scale_shares;
  float eps;
  bool aligned;
};

// Rows of d_g = d_logits·scale + d_square·r.
template <class Product, int NT>
struct ProductGradient {
  const float *d_logits, *responsibilities;  // of the problem
  const float *scale, *d_square;             // [columns]
  float* d_product;
  int width, num_bases, stride, stored, first;
  float raw[2][NT], raw_r[2][NT];

  // For want of registers, not ahead of time where there are many bases.
  static constexpr bool kAhead = NT <= 8;

  __device__ __forceinline__ void read(int slot, int channel) {
    const int l = int(threadIdx.x) % 8;
#pragma unroll
    for (int i = 0; i < NT; ++i) {
      const int k = l + 8 * i;
      const bool inside = channel < width && k < num_bases;
      raw[slot][i] = inside && d_logits != nullptr ? d_logits[int64_t(channel) * num_bases + k] : 0.0f;
      raw_r[slot][i] = inside ? responsibilities[int64_t(channel) * stride + k] : 0.0f;
    }
  }
  __device__ __forceinline__ void load(int slot, int channel) {
    if constexpr (kAhead) read(slot, channel);
  }
  __device__ __forceinline__ void make(int slot, int channel, float (&row)[NT]) {
    if constexpr (!kAhead) read(slot, channel);
    const int l = int(threadIdx.x) % 8;
    const bool is_own = channel >= first && channel < first + Product::kRows && channel < width;
#pragma unroll
    for (int i = 0; i < NT; ++i) {
      row[i] = raw[slot][i] * scale[l + 8 * i] + d_square[l + 8 * i] * raw_r[slot][i];
      if (is_own && l + 8 * i < stored) d_product[int64_t(channel) * stride + l + 8 * i] = row[i];
    }
  }
};

template <int MT, int NT>
__global__ void __launch_bounds__(32 * kFitWarps, NT <= 4 ? 2 : 1) fit_backward_maximise_kernel(BackwardMaximise a) {
  using Product = ThinProduct<MT, NT, true>;
  constexpr int kColumns = Product::kColumns;
  const int thread = int(threadIdx.x), l = thread % 8, num_bases = a.num_bases, width = a.width;
  const int block = int(blockIdx.x % unsigned(a.blocks));
  const int64_t problem = blockIdx.x / unsigned(a.blocks), shares = problem * a.blocks * num_bases;
  const int64_t first_number = problem * width * a.kept.stride, first_result = problem * width * num_bases;
  float* memory = reinterpret_cast<float*>(dynamic_shared());
  float* inner = memory + Product::kStreamed;  // [row tiles, columns]
  float* scale = inner + MT * kColumns;        // [columns]
  float* d_square = scale + kColumns;          // [columns]

  for (int k = thread / 8; k < kColumns; k += 4 * kFitWarps) {
    const float length = root(sum_of_shares(a.squares + shares, a.blocks, num_bases, k, l));
    const float d_scale =
        sum_of_shares(a.d_scale + problem * a.d_scale_shares * num_bases, a.d_scale_shares, num_bases, k, l);
    const float value = 1.0f / (a.eps + length);
    if (l == 0) {
      scale[k] = k < num_bases ? value : 0.0f;
      d_square[k] = length > 0 ? -d_scale * value * value / (2 * length) : 0.0f;
    }
  }
  __syncthreads();

  const Product product{a.gram + problem * width * width, width, block * Product::kRows, a.aligned, memory};
  ProductGradient<Product, NT> d_g{a.d_logits == nullptr ? nullptr : a.d_logits + first_result,
                                   a.kept.responsibilities + first_number,
                                   scale,
                                   d_square,
                                   a.d_product + first_number,
                                   width,
                                   num_bases,
                                   a.kept.stride,
                                   a.kept.stored,
                                   product.first,
                                   {},
                                   {}};
  product.run(d_g);

  product.for_each([&](int m, int row, int column, const float4& g) {
    float share[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int k = column + j;
      const auto finish = [&](int channel, float through_gram) {
        if (channel >= width || k >= num_bases) return 0.0f;
        const int64_t kept = first_number + int64_t(channel) * a.kept.stride + k;
        const int64_t to = first_result + int64_t(channel) * num_bases + k;
        float value = through_gram + d_square[k] * a.kept.product[kept];
        if (a.d_result != nullptr) value += a.d_result[to];
        a.d_responsibilities[to] = value;
        return value * a.kept.responsibilities[kept];
      };
      const float upper = finish(product.first + row, j ? g.y : g.x);
      share[j] = sum_lanes<4, 16>(upper + finish(product.first + row + 8, j ? g.w : g.z));
    }
    if (thread % 32 < 4) {
      inner[m * kColumns + column] = share[0];
      inner[m * kColumns + column + 1] = share[1];
    }
  });
  __syncthreads();
  for (int k = thread; k < num_bases; k += Product::kThreads) {
    float sum = 0;
#pragma unroll
    for (int m = 0; m < MT; ++m) sum += inner[m * kColumns + k];
    a.inner[shares + block * num_bases + k] = sum;
  }
}

// ---- (BE) -----------------------------------------------------------------------------------------------------------

constexpr int kChannels = 4 * kFitWarps;  // of a block: 8 lanes for each

struct BackwardExpect {
  const float* responsibilities;            // as `Kept`
  const float* before;                      // gram·r of the iteration before, as `Kept`; null in the first
  const float *d_responsibilities, *inner;  // of BackwardMaximise
  const float* column_sums;                 // [P, K]
  float* d_logits;                          // [P, D, K]  out
  float* d_scale;  // [P, channel blocks, K]  out: shares of Σ_d d_logits·before; not in the first
  int width, num_bases, blocks, channel_blocks, stride;
  float inverse_temperature, eps;
};

template <int NT>
__global__ void __launch_bounds__(32 * kFitWarps, NT <= 8 ? 2 : 1) fit_backward_expect_kernel(BackwardExpect a) {
  constexpr int kColumns = 8 * NT;
  const int thread = int(threadIdx.x), l = thread % 8, num_bases = a.num_bases, width = a.width;
  const int block = int(blockIdx.x % unsigned(a.channel_blocks)), channel = block * kChannels + thread / 8;
  const int64_t problem = blockIdx.x / unsigned(a.channel_blocks);
  const int64_t kept = (problem * width + channel) * a.stride, result = (problem * width + channel) * num_bases;
  float* inner = reinterpret_cast<float*>(dynamic_shared());  // [columns]
  float* shares = inner + kColumns;                           // [warps, columns]

  for (int k = thread / 8; k < kColumns; k += kChannels) {
    const float sum = sum_of_shares(a.inner + problem * a.blocks * num_bases, a.blocks, num_bases, k, l);
    if (l == 0) inner[k] = sum;
  }
  __syncthreads();

  // p = r·sums; d_p = (d_r - inner) / sums; so p·d_p = r·(d_r - inner). Rounding leaves the sum of p off one, and where
  // one basis takes the channel nothing else is left: so p is divided by it.
  float p[NT], through[NT], whole = 0, total = 0;
#pragma unroll
  for (int i = 0; i < NT; ++i) {
    const int k = l + 8 * i;
    const bool inside = channel < width && k < num_bases;
    const float r = inside ? a.responsibilities[kept + k] : 0.0f;
    p[i] = inside ? r * (a.eps + a.column_sums[problem * num_bases + k]) : 0.0f;
    through[i] = inside ? r * (a.d_responsibilities[result + k] - inner[k]) : 0.0f;
    whole += p[i];
    total += through[i];
  }
  whole = sum_lanes<1, 4>(whole);
  total = sum_lanes<1, 4>(total);
#pragma unroll
  for (int i = 0; i < NT; ++i) {
    const int k = l + 8 * i;
    float share = 0;
    if (channel < width && k < num_bases) {
      const float d_logit = (through[i] - p[i] / whole * total) * a.inverse_temperature;
      a.d_logits[result + k] = d_logit;
      if (a.before != nullptr) share = d_logit * a.before[kept + k];
    }
    share = sum_lanes<8, 16>(share);
    if (thread % 32 < 8) shares[thread / 32 * kColumns + k] = share;
  }
  if (a.before == nullptr) return;
  __syncthreads();
  for (int k = thread; k < num_bases; k += 32 * kFitWarps) {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < kFitWarps; ++warp) sum += shares[warp * kColumns + k];
    a.d_scale[(problem * a.channel_blocks + block) * num_bases + k] = sum;
  }
}

// ---- all of it ------------------------------------------------------------------------------------------------------

struct Backward {
  const Call& call;
  const StepShape shape;
  int64_t width, num_bases, num_iters, stored;  // `stored`: the bases of an iteration, with zeros behind them
  int64_t channel_blocks;
  // [P, D, T, stored], [P, D, T, stored], [P, D, T, stored], [T, P, blocks, K], [T, P, K]
  float *responsibilities, *product, *d_product, *squares, *column_sums;
  // [P, D, K], [P, D, K], [P, blocks, K], [P, channel blocks, K]
  float *d_responsibilities, *d_logits, *inner, *d_scale;

  Backward(const Call& call_, const StepShape& shape_, int64_t width_, int64_t num_bases_, int64_t iters_)
      : call(call_),
        shape(shape_),
        width(width_),
        num_bases(num_bases_),
        num_iters(iters_),
        stored(round_up(num_bases_, 4)),
        channel_blocks((width_ + kChannels - 1) / kChannels) {
    const int64_t group = shape.problems;
    for (float** states : {&responsibilities, &product, &d_product})
      *states = floats(call, group * width * num_iters * stored);
    squares = floats(call, num_iters * group * shape.blocks * num_bases);
    column_sums = floats(call, num_iters * group * num_bases);
    for (float** thin : {&d_responsibilities, &d_logits}) *thin = floats(call, group * width * num_bases);
    inner = floats(call, group * shape.blocks * num_bases);
    d_scale = floats(call, group * channel_blocks * num_bases);
  }

  float* squares_of(int64_t t) const { return squares + t * shape.problems * shape.blocks * num_bases; }
  float* column_sums_of(int64_t t) const { return column_sums + t * shape.problems * num_bases; }

  void forward(Step step, int64_t problems) const {
    step.stored = int(stored);
    step.stride = int(num_iters * stored);
    for (int64_t t = 0; t < num_iters; ++t) {
      step.product = product + t * stored;
      step.responsibilities = responsibilities + t * stored;
      step.squares = squares_of(t);
      step.column_sums = column_sums_of(t);
      launch_step(call, shape, step, problems);
      step.previous = step.product;
      step.previous_stride = step.stride;
      step.previous_squares = step.squares;
    }
  }

  void backward(const Step& step, int64_t problems, const float* d_result, const float* d_result_scale,
                float* d_first_logits) const {
    const int stride = int(num_iters * stored);
    const Launch maximise{.x = unsigned(problems * shape.blocks),
                          .threads = 32 * kFitWarps,
                          .shared = 4 * size_t(step_shared(shape.rows, shape.tiles, true))};
    const Launch expect{.x = unsigned(problems * channel_blocks),
                        .threads = 32 * kFitWarps,
                        .shared = size_t(1 + kFitWarps) * 8 * shape.tiles * sizeof(float)};
    for (int64_t t = num_iters - 1; t >= 0; --t) {
      const bool last = t + 1 == num_iters;
      const Kept kept{responsibilities + t * stored, product + t * stored, stride, int(stored)};
      const BackwardMaximise m{kept,
                               step.gram,
                               squares_of(t),
                               last ? nullptr : d_logits,
                               last ? d_result_scale : d_scale,
                               last ? d_result : nullptr,
                               d_product + t * stored,
                               d_responsibilities,
                               inner,
                               int(width),
                               int(num_bases),
                               shape.blocks,
                               last ? 1 : int(channel_blocks),
                               step.eps,
                               step.aligned};
      const BackwardExpect e{kept.responsibilities,
                             t == 0 ? nullptr : product + (t - 1) * stored,
                             d_responsibilities,
                             inner,
                             column_sums_of(t),
                             t == 0 ? d_first_logits : d_logits,
                             d_scale,
                             int(width),
                             int(num_bases),
                             shape.blocks,
                             int(channel_blocks),
                             stride,
                             step.inverse_temperature,
                             step.eps};
      with_step_tiles(shape, [&](auto mt, auto nt) {
        launch(call.stream, maximise, fit_backward_maximise_kernel<mt(), nt()>, m);
        launch(call.stream, expect, fit_backward_expect_kernel<nt()>, e);
      });
    }
  }
};

}  // namespace

void fit_backward(const Call& call, const float* gram, const float* logits, const float* d_responsibilities,
                  const float* d_scale, int64_t problems, int64_t width, int64_t num_bases, Settings settings,
                  float* d_gram, float* d_logits) {
  if (problems == 0) return;
  const StepShape shape = step_shape(problems, width, num_bases);
  const Backward em(call, shape, width, num_bases, settings.num_iters);
  const int64_t size = width * num_bases;
  for (int64_t first = 0; first < problems; first += shape.problems) {
    const int64_t count = std::min<int64_t>(shape.problems, problems - first);
    const Step step =
        first_step(shape, gram + first * width * width, logits + first * size, width, num_bases, settings);
    em.forward(step, count);
    em.backward(step, count, d_responsibilities + first * size, d_scale + first * num_bases, d_logits + first * size);
    multiply_deep(call, em.d_product, em.responsibilities, count, width, settings.num_iters * em.stored,
                  d_gram + first * width * width);
  }
}

}  // namespace emcl
