// What the files of the pooled similarity share on the host: how rows, weights and small matrices lie in memory, and
// the steps that its functions are made of (docs/math.md, P).
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "cuda/tile/splits.h"
#include "kernels.h"

namespace emcl {
namespace pooled {

__host__ __device__ constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

template <class T>
T* allocate(const Call& call, int64_t count) {
  return static_cast<T*>(call.workspace(size_t(std::max<int64_t>(count, 1)) * sizeof(T)));
}

constexpr int kThreads = 256;  // of a block, in kernels that are no products of tiles
// A thread, or a warp, for each of `count` things in each problem.
inline Launch threads_for(int64_t count, int64_t problems = 1) {
  Launch shape{unsigned(divide_up(count, kThreads)), unsigned(problems)};
  shape.threads = kThreads;
  return shape;
}
inline Launch warps_for(int64_t count, int64_t problems = 1) { return threads_for(32 * count, problems); }

// Workspace for steps that follow each other on the stream: each takes what the one before had.
class Reused {
 public:
  explicit Reused(const Call& call)
      : outer_(call), call_{call.stream, call.device, [this](size_t bytes) { return take(bytes); }} {}
  Reused(const Reused&) = delete;
  Reused& operator=(const Reused&) = delete;
  const Call& next_step() {
    next_ = 0;
    return call_;
  }

 private:
  void* take(size_t bytes) {
    if (next_ == buffers_.size()) buffers_.push_back({nullptr, 0});
    auto& [memory, size] = buffers_[next_++];
    if (size < bytes) {
      memory = outer_.workspace(bytes);
      size = bytes;
    }
    return memory;
  }
  const Call& outer_;
  Call call_;
  std::vector<std::pair<void*, size_t>> buffers_;
  size_t next_ = 0;
};

// A matrix for the tensor cores: every number as the sum of one, two or three of 16 bits. Rows are padded with zeros to
// whole pieces of 16 bytes, and may be read up to there.
struct Matrix16 {
  uint16_t* numbers;
  int64_t part;    // from one part to the next
  int64_t stride;  // from one row to the next, a multiple of 8
  int parts;
  __host__ __device__ Matrix16 from_row(int64_t row) const { return {numbers + row * stride, part, stride, parts}; }
  __host__ __device__ Matrix16 from_column(int64_t column) const { return {numbers + column, part, stride, parts}; }
  Matrix16 with_parts(int count) const { return {numbers, part, stride, std::min(parts, count)}; }
};
inline Matrix16 allocate_matrix(const Call& call, int64_t rows, int64_t width, int parts = 2) {
  const int64_t stride = round_up(width, 8);
  return {allocate<uint16_t>(call, parts * rows * stride), rows * stride, stride, parts};
}

inline int64_t bytes_of(Element element) { return element == Element::float32 ? 4 : 2; }

// How frames become columns of a tile: each video takes 8, 16, 32 or 64, and whole videos fill a group of 64.
constexpr int kGroup = 64;
struct Frames {
  int count;       // of a video
  int padded_log;  // of its columns
  __host__ __device__ int videos_of_group() const { return kGroup >> padded_log; }
};
inline Frames frames_of(int64_t count) {
  int log = 3;
  while (int64_t(1) << log < count) ++log;
  return {int(count), log};
}

// Independent problems, each of one block of texts and one block of videos; those of a launch are `count` from `first`
// on, and what belongs to one problem only starts at the first. The last blocks may be smaller: their rows, columns and
// groups then lie where those of a whole block do.
struct Problems {
  int texts, videos;  // of all problems
  Frames frames;
  int text_block, video_block;
  int first, count;
  __host__ __device__ int groups() const { return int(divide_up(video_block, frames.videos_of_group())); }
  __host__ __device__ int frame_rows() const { return video_block * frames.count; }
};
inline Problems one_problem(const Pool& size) {
  return {int(size.texts), int(size.videos), frames_of(size.frames), int(size.texts), int(size.videos), 0, 1};
}

// ---- pooled_rows.cu ----

// All rows of a call, frames [B·F, D] and below them texts [A, D].
struct PackedRows {
  Matrix16 own;        // as they are multiplied by each other,
  const float* scale;  // each row times this, or null for 1
  Matrix16 exact;      // as they are multiplied by float32 matrices
};
// Parts of small float32 matrices beside such rows.
inline int small_parts(const PackedRows& rows) { return rows.exact.parts == 1 ? 2 : 3; }
PackedRows pack_rows(const Call&, Element, const Pool&, const void* text, const void* frames, bool with_own = true);
Matrix16 pack_matrix(const Call&, const float* x, int64_t rows, int64_t width, int parts);
// x [width, width] + its transpose
Matrix16 pack_symmetric(const Call&, const float* x, int64_t width, int parts);

// out [problems, size] = Σ over parts [problems, parts, size], in their order
void add_parts(const Call&, const float* parts, int64_t problems, int64_t count, int64_t size, float* out);
// The same for symmetric matrices of which only the upper half is there.
void add_upper_parts(const Call&, const float* parts, int64_t problems, int64_t count, int64_t width, float* out);

// out [rows, width] = Σ sums + own_scale·own + vector_scale·vector; what is null is left out.
struct Finish {
  const float* sums;  // [parts, rows, width]
  int64_t parts;
  const float* own_scale;     // [rows]
  const void* own;            // [rows, width]
  const float* vector_scale;  // [rows], or null for 1
  const float* vector;        // [width]
};
void finish_rows(const Call&, Element, const Finish&, int64_t rows, int64_t width, void* out);

// ---- pooled_product.cu ----

enum class RowsOf { all, frames, texts, frames_and_texts };

// left·right, or leftᵀ·right where `transposed`.
struct Product {
  Matrix16 left, right;
  bool transposed;
  RowsOf left_rows;          // which of all packed rows each problem takes
  int left_step;             // RowsOf::all: so many, one problem after the other
  int right_step;            // rows of right, likewise
  int rows, columns, depth;  // of the result
  bool upper;                // only tiles on and above the diagonal
  int splits;                // parts in which the depth is summed
  // Either float32 [problems, splits, rows, columns], written or added to, ...
  float* sums;
  bool add;
  // ... or [problems·rows, columns].
  Matrix16 out;
};
void multiply(const Call&, const Problems&, const Product&);

// ---- pooled_group.cu ----

// Inner products of the frames of each video, [problems·groups·64, 64]: of rows `left` and `frames`, and in the bases.
struct InnerProducts {
  Matrix16 left, frames;
  int width;
  Matrix16 mapped;  // [problems·frame_rows, 2·bases]: both factors beside each other
  int num_bases;
  Matrix16 out;
  float* squares;  // [problems·groups·64]: of each frame, the larger of before and after the map; or null
};
Matrix16 inner_products(const Call&, const Problems&, InnerProducts);

// Σ of w·wᵀ [problems·groups·64, 64] and of w [problems, frame_rows], from parts of the texts.
struct Squares16 {
  Matrix16 squares;
  float* counts;
};
Squares16 sum_squares(const Call&, const Problems&, const float* squares, const float* counts, int splits);

// Those squares times rows.
struct SquareTimes {
  Matrix16 squares, rows;  // rows: of all frames
  int columns;
  int out_step;  // rows of the result, one problem after the other
  float* sums;   // as in Product
  bool add;
  Matrix16 out;
};
void multiply_squares(const Call&, const Problems&, const SquareTimes&);

// ---- pooled_map.cu ----

// What a fitted map makes of the rows. M is what corrects inner products, C with both factors mapped, E with one.
struct Mapped {
  int num_bases;       // as a multiple of 8
  Matrix16 texts;      // [problems·text_block, 2·bases]: t·r, and t·r·C
  Matrix16 frames;     // [problems·frame_rows, 2·bases]: f·r, and f·r·M
  Matrix16 matrix;     // [problems·D, 2·bases]: r, and r·M
  float* text_length;  // [problems, text_block]
  Matrix16 inner;      // InnerProducts of mapped frames
  float* squares;      // InnerProducts of them
};
// map.responsibilities [problems, D, K], map.scale [problems, K]
Mapped map_rows(const Call&, const Problems&, const PackedRows&, int64_t width, const Map& map, bool twice);

// [columns, rows]
Matrix16 transpose(const Call&, const Matrix16&, int64_t rows, int64_t columns);

// ---- moments and cosine of several problems at a time --------------------------------------------------------------

// gram [problems, D, D], colsum [problems, D], kept [problems, frame_rows, text_block] or null
void moments_of(const Call&, Element, const Problems&, const PackedRows&, const Pool&, const float* frame_mask,
                float* gram, float* colsum, float* kept);
// cosine and length [texts, videos] of all problems; length may be null
void cosine_of(const Call&, Element, const Problems&, const PackedRows&, const Pool&, const Map&,
               const float* frame_mask, const float* kept, float* cosine, float* length);

}  // namespace pooled
}  // namespace emcl
