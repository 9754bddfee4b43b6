// EMCL in one call, in the Gram form: moments, the start, EM, the reconstruction, and the mean of the bases.
#include "cuda/rows/start.h"
#include "cuda/tile/device.cuh"
#include "kernels.h"

namespace emcl {
namespace {

// (G0) logits [P, D, K] = colsum ⊗ init
constexpr int kThreads = 256;
__global__ void __launch_bounds__(kThreads)
    start_kernel(const float* colsum, const float* init, int64_t count, int width, int num_bases, float* logits) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t channel = i / num_bases;
  logits[i] = colsum[channel] * init[channel / width * num_bases + i % num_bases];
}

// (GI) mean_bases [P, K] = (colsumᵀ·r)·scale / N: a block for each problem; each warp sums every 32nd channel.
constexpr int kMeanWarps = 32;
__global__ void __launch_bounds__(32 * kMeanWarps)
    mean_kernel(const float* colsum, const float* responsibilities, const float* scale, int width, int num_bases,
                float rows, float* mean_bases) {
  const int64_t problem = blockIdx.x;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  float* sums = reinterpret_cast<float*>(dynamic_shared());  // [warps, 32]
  colsum += problem * width;
  responsibilities += problem * width * num_bases;
  for (int first = 0; first < num_bases; first += 32) {
    const int k = first + lane;
    float sum = 0;
    if (k < num_bases)
      for (int d = warp; d < width; d += kMeanWarps) sum += colsum[d] * responsibilities[int64_t(d) * num_bases + k];
    sums[warp * 32 + lane] = sum;
    __syncthreads();
    if (warp == 0 && k < num_bases) {
      float total = 0;
      for (int w = 0; w < kMeanWarps; ++w) total += sums[w * 32 + lane];
      mean_bases[problem * num_bases + k] = total * scale[problem * num_bases + k] / rows;
    }
    __syncthreads();
  }
}

}  // namespace

void project(const Call& call, Element element, const void* x, const float* init, bool per_row, Rows shape,
             int64_t num_bases, Settings settings, Form, double residual_weight, void* y, float* mean_bases,
             float* responsibilities, float* scale) {
  if (shape.problems == 0) return;
  const int64_t problems = shape.problems, width = shape.width, count = problems * width * num_bases;
  const auto floats = [&](int64_t n) { return static_cast<float*>(call.workspace(size_t(n) * sizeof(float))); };
  float *gram = floats(problems * width * width), *colsum = floats(problems * width), *logits = floats(count);
  moments(call, element, x, shape, gram, colsum);
  if (per_row) {
    start_from_rows(call, element, x, init, shape, num_bases, logits);
  } else {
    const Launch blocks{.x = unsigned((count + kThreads - 1) / kThreads), .threads = kThreads};
    launch(call.stream, blocks, start_kernel, colsum, init, count, int(width), int(num_bases), logits);
  }
  fit(call, gram, logits, problems, width, num_bases, settings, responsibilities, scale);
  reconstruct(call, element, x, responsibilities, scale, shape, num_bases, residual_weight, y);
  const Launch blocks{.x = unsigned(problems), .threads = 32 * kMeanWarps, .shared = 32 * kMeanWarps * sizeof(float)};
  launch(call.stream, blocks, mean_kernel, colsum, responsibilities, scale, int(width), int(num_bases),
         float(shape.rows), mean_bases);
}

}  // namespace emcl
