// How EM on a Gram matrix is laid out on a device: free of CUDA types, for the kernels, the bindings and the tests.
// Everything follows from the shapes and from what the device has, so the same input gives the same bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace emcl {

constexpr int kFitWarps = 8;        // of a block, in every kernel of EM
constexpr int kFitDepth = 64;       // channels that a step multiplies at a time: a tensor core's 8 for each warp
constexpr int kClusterWidth = 768;  // more channels do not fit into any cluster

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Numbers of 32 bits from row to row of a matrix in shared memory, so that 4 rows of 8 numbers lie in 32 banks.
constexpr int bank_pitch(int columns) { return columns % 32 == 8 || columns % 32 == 24 ? columns : columns + 8; }

// One cluster of blocks keeps one Gram matrix in shared memory for all iterations.
struct ClusterShape {
  int blocks;     // of the cluster
  int rows;       // of the Gram matrix in each block
  int sources;    // blocks that have rows; the others only take part in barriers
  int tiles;      // of 8 bases
  int pitch;      // 16-bit numbers from row to row of the Gram matrix
  int own_pitch;  // float32 numbers from channel to channel of the block's responsibilities
  // Where things lie in shared memory, in bytes.
  int low, own, fragments, scratch, row_unit, column_unit, column_sums, squares, received, factor, inverse, size;
};

inline int tiles_at_once(int tiles) { return std::min(tiles, 4); }

inline ClusterShape cluster_shape(int rows, int width, int num_bases) {
  ClusterShape s{};
  s.rows = rows;
  s.sources = (width + rows - 1) / rows;
  for (s.blocks = 1; s.blocks < s.sources; s.blocks *= 2) {
  }
  s.tiles = num_bases <= 8 ? 1 : num_bases <= 16 ? 2 : int(round_up(num_bases, 32) / 8);
  s.pitch = s.sources * rows + 8;  // an odd number of 16-byte units: 8 rows lie in different banks
  s.own_pitch = bank_pitch(8 * s.tiles);
  const int column = 8 * s.tiles * 4, items = rows / 16 * 32 * 16;  // bytes of a number per basis, of a tile of sums
  int at = 0;
  const auto place = [&](int bytes) {
    const int start = at;
    at += int(round_up(bytes, 16));
    return start;
  };
  place(rows * s.pitch * 2);  // the high halves
  s.low = place(rows * s.pitch * 2);
  s.own = place(rows * s.own_pitch * 4);
  s.fragments = place(items * s.tiles);
  s.scratch = place(kFitWarps * items * tiles_at_once(s.tiles));
  s.row_unit = place(rows * 4);
  s.column_unit = place(column);
  s.column_sums = place(kFitWarps * column);
  s.squares = place(rows / 16 * column);
  s.received = place(2 * s.blocks * column);
  s.factor = place(column);
  s.inverse = place(column);
  s.size = at;
  return s;
}

// One launch for each iteration; the Gram matrix stays where it is.
struct StepShape {
  int rows;      // of the Gram matrix that a block multiplies
  int tiles;     // of 8 bases
  int blocks;    // of a problem
  int problems;  // in one launch: as many as keep their Gram matrices in the second cache
};

constexpr int step_stages(int rows) { return rows == 16 ? 4 : 2; }  // tiles of the Gram matrix, on their way or in use
constexpr int step_pitch(int rows, bool transposed) { return transposed ? rows + 8 : kFitDepth + 4; }
constexpr int step_tile(int rows, bool transposed) {  // float32 numbers
  return (transposed ? kFitDepth : rows) * step_pitch(rows, transposed);
}
// float32 numbers of the two matrices' tiles, in whose place the warps' sums lie afterwards
constexpr int step_streamed(int rows, int tiles, bool transposed) {
  return std::max(step_stages(rows) * step_tile(rows, transposed) + 2 * kFitDepth * bank_pitch(8 * tiles),
                  kFitWarps * rows * 8 * tiles);
}
// float32 numbers: then the block's own responsibilities, and sums per basis of each warp, each row tile, and of all
constexpr int step_shared(int rows, int tiles, bool transposed) {
  return step_streamed(rows, tiles, transposed) + rows * bank_pitch(8 * tiles) +
         (kFitWarps + rows / 16 + 2) * 8 * tiles;
}

inline StepShape step_shape(int64_t problems, int64_t width, int64_t num_bases) {
  constexpr int64_t kSecondCache = 32 << 20;  // bytes
  constexpr int64_t kEnoughBlocks = 128;      // for a large GPU; a constant, so that tiles do not depend on the device
  StepShape s{};
  s.tiles = num_bases <= 8 ? 1 : num_bases <= 16 ? 2 : num_bases <= 32 ? 4 : num_bases <= 64 ? 8 : 16;
  const int tall = s.tiles <= 4 ? 64 : s.tiles == 8 ? 32 : 16;  // 64 sums of a warp's lane
  s.problems = int(std::min(problems, std::max<int64_t>(1, kSecondCache / (4 * width * width))));
  s.rows = s.problems * ((width + tall - 1) / tall) >= kEnoughBlocks ? tall : 16;
  s.blocks = int((width + s.rows - 1) / s.rows);
  return s;
}

struct FitPlan {
  bool cluster;  // else one launch for each iteration
  int blocks;    // of a problem
  int rows;      // of the Gram matrix in a block
  int launches;
  size_t shared;      // bytes of a block
  ClusterShape held;  // with `cluster`
  StepShape step;     // without
};

// most_shared: bytes of shared memory that a block may have. largest_cluster: every device with clusters takes 8.
inline FitPlan fit_plan(int architecture, size_t most_shared, int largest_cluster, int64_t problems, int64_t width,
                        int64_t num_bases, int64_t num_iters) {
  FitPlan plan{};
  for (const int blocks : {8, 16})
    for (const int rows : {32, 48, 64}) {
      if (architecture < 90 || blocks > largest_cluster || blocks * rows < width || width > kClusterWidth) continue;
      plan.held = cluster_shape(rows, int(width), int(num_bases));
      if (size_t(plan.held.size) > most_shared) break;
      plan.cluster = true;
      plan.blocks = plan.held.blocks;
      plan.rows = rows;
      plan.launches = 1;
      plan.shared = size_t(plan.held.size);
      return plan;
    }
  plan.held = {};
  plan.step = step_shape(problems, width, num_bases);
  plan.blocks = plan.step.blocks;
  plan.rows = plan.step.rows;
  plan.launches = int((problems + plan.step.problems - 1) / plan.step.problems * (num_iters + 1));
  plan.shared = 4 * size_t(step_shared(plan.step.rows, plan.step.tiles, false));
  return plan;
}

// Blocks in the largest cluster worth trying: sizes over 8 are taken by the architectures of data centres only.
inline int largest_cluster(int architecture) { return architecture >= 90 && architecture < 120 ? 16 : 8; }

}  // namespace emcl
