// The evaluation's similarity: every block of texts and videos is a problem of its own, from moments to cosine.
#include "cuda/pooled/pooled_weights.cuh"

namespace emcl {
namespace pooled {
namespace {

constexpr int64_t kHeldBytes = int64_t(256) << 20;  // of the problems that are solved together

// (G0) logits [problems, D, K] = colsum ⊗ init
__global__ void start_kernel(const float* colsum, const float* init, int64_t size, int num_bases, float* logits) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < size) logits[i] = colsum[i / num_bases] * init[i % num_bases];
}

// scale [problems, K] times ‖x‖ / ‖reconstruction‖ of each problem, 0 where all rows are zero, NaN where a square
// overflows:
// ‖x‖² = Σ_d gram[d, d], ‖reconstruction‖² = Σ_kl scale[k]·scale[l]·(rᵀ·gram·r)[k, l]·(rᵀ·r)[k, l]
__global__ void __launch_bounds__(kThreads)
    relative_kernel(const float* gram, const float* gram_r, const float* r, int width, int num_bases, float* scale) {
  const int thread = int(threadIdx.x);
  gram += int64_t(blockIdx.x) * width * width;
  gram_r += int64_t(blockIdx.x) * width * num_bases;
  r += int64_t(blockIdx.x) * width * num_bases;
  scale += int64_t(blockIdx.x) * num_bases;
  float* partial = reinterpret_cast<float*>(dynamic_shared());  // [2, kThreads]
  float rows = 0, reconstruction = 0;
  for (int d = thread; d < width; d += kThreads) rows += gram[int64_t(d) * width + d];
  for (int i = thread; i < num_bases * num_bases; i += kThreads) {
    const int k = i / num_bases, l = i % num_bases;
    float plain = 0, through_gram = 0;
    for (int64_t d = 0; d < int64_t(width) * num_bases; d += num_bases) {
      plain += r[d + k] * r[d + l];
      through_gram += gram_r[d + k] * r[d + l];
    }
    reconstruction += scale[k] * scale[l] * plain * through_gram;
  }
  partial[thread] = rows;
  partial[kThreads + thread] = reconstruction;
  __syncthreads();
  rows = reconstruction = 0;
  for (int i = 0; i < kThreads; ++i) {
    rows += partial[i];
    reconstruction += partial[kThreads + i];
  }
  const float norms = reconstruction <= 0 ? 0.0f : sqrtf(rows / reconstruction) + (reconstruction - reconstruction);
  for (int k = thread; k < num_bases; k += kThreads) scale[k] *= norms;  // read above, before the barrier
}

void make_relative(const Call& call, const Problems& problems, const float* gram, const float* r, int width,
                   int num_bases, float* scale) {
  Product p{};
  p.left = pack_matrix(call, gram, int64_t(problems.count) * width, width, Exact::count);
  p.right = pack_matrix(call, r, int64_t(problems.count) * width, num_bases, Exact::count);
  p.left_rows = RowsOf::all;
  p.left_step = p.right_step = p.rows = p.depth = width;
  p.columns = num_bases;
  p.splits = 1;
  p.sums = allocate<float>(call, int64_t(problems.count) * width * num_bases);
  multiply(call, problems, p);
  Launch shape{unsigned(problems.count)};
  shape.threads = kThreads;
  shape.shared = 2 * kThreads * sizeof(float);
  launch(call.stream, shape, relative_kernel, gram, static_cast<const float*>(p.sums), r, width, num_bases, scale);
}

}  // namespace
}  // namespace pooled

void pooled_blocks(const Call& call, Element element, Pool size, Settings settings, int64_t em_block, const void* text,
                   const void* frames, const float* frame_mask, const float* init, int64_t num_bases,
                   double residual_weight, bool relative, float* cosine) {
  using namespace pooled;
  const int64_t width = size.width;
  const PackedRows rows = pack_rows(call, element, size, text, frames);
  Problems problems = one_problem(size);
  problems.text_block = int(std::min(em_block, size.texts));
  problems.video_block = int(std::min(em_block, size.videos));
  const int64_t all = divide_up(size.texts, problems.text_block) * divide_up(size.videos, problems.video_block);
  if (all > INT32_MAX) throw std::invalid_argument("emcl: more than 2^31 blocks; pass a larger em_block");

  const int64_t kept_size = int64_t(problems.frame_rows()) * problems.text_block;
  const bool keep = kept_size * int64_t(sizeof(float)) <= kHeldBytes;
  const int64_t numbers = 2 * width * width + (problems.frame_rows() + problems.text_block) * (width + 2 * num_bases) +
                          5 * width * num_bases + (keep ? kept_size : 0);
  const int64_t together =
      std::clamp<int64_t>(kHeldBytes / int64_t(sizeof(float)) / numbers, 1, std::min<int64_t>(all, 4096));
  Reused workspace(call);
  for (int64_t first = 0; first < all; first += together) {
    const Call& step = workspace.next_step();
    problems.first = int(first);
    problems.count = int(std::min(together, all - first));
    const int64_t count = problems.count;
    float *gram = allocate<float>(step, count * width * width), *colsum = allocate<float>(step, count * width);
    float* kept = keep ? allocate<float>(step, count * kept_size) : nullptr;
    moments_of(step, element, problems, rows, size, frame_mask, gram, colsum, kept);

    float *logits = allocate<float>(step, count * width * num_bases),
          *r = allocate<float>(step, count * width * num_bases);
    float* scale = allocate<float>(step, count * num_bases);
    launch(step.stream, threads_for(count * width * num_bases), start_kernel, static_cast<const float*>(colsum), init,
           count * width * num_bases, int(num_bases), logits);
    fit(step, gram, logits, count, width, num_bases, settings, r, scale);
    if (relative) make_relative(step, problems, gram, r, int(width), int(num_bases), scale);
    cosine_of(step, element, problems, rows, size, Map{r, scale, num_bases, residual_weight}, frame_mask, kept, cosine,
              nullptr);
  }
}

}  // namespace emcl
