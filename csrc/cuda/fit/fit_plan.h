// How EM on a Gram matrix is laid out on a device: free of CUDA types, for the kernels, the bindings and the tests.
// Everything follows from the shapes and from what the device has, so the same input gives the same bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

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

// What EMCL_FIT asks for, for tests and measurements.
enum class FitWay { automatic, cluster8, cluster16, steps };

inline FitWay fit_way(const std::string& name) {
  if (name.empty() || name == "auto") return FitWay::automatic;
  if (name == "cluster8") return FitWay::cluster8;
  if (name == "cluster16") return FitWay::cluster16;
  if (name == "steps") return FitWay::steps;
  throw std::invalid_argument("emcl: EMCL_FIT is \"" + name + "\"; expected auto, cluster8, cluster16 or steps");
}

struct FitPlan {
  bool cluster;  // else one launch for each iteration
  int blocks;    // of a problem
  int rows;      // of the Gram matrix in a block
  int64_t launches;
  size_t shared;      // bytes of a block
  ClusterShape held;  // with `cluster`
  StepShape step;     // without
};

// Blocks in the largest cluster worth trying: sizes over 8 are taken by the architectures of data centres only.
inline int largest_cluster(int architecture) { return architecture >= 90 && architecture < 120 ? 16 : 8; }

// Fewest rows of the Gram matrix in a block, so that it is spread over as many blocks as may be.
constexpr int kClusterRows[] = {32, 48, 64};

// Whether a cluster of up to `blocks` blocks holds one Gram matrix, and how.
inline bool plan_cluster(int blocks, size_t most_shared, int64_t width, int64_t num_bases, FitPlan& plan) {
  for (const int rows : kClusterRows) {
    if (blocks * rows < width || width > kClusterWidth) continue;
    const ClusterShape held = cluster_shape(rows, int(width), int(num_bases));
    if (size_t(held.size) > most_shared) return false;
    plan.cluster = true;
    plan.held = held;
    plan.blocks = held.blocks;
    plan.rows = rows;
    plan.launches = 1;
    plan.shared = size_t(held.size);
    return true;
  }
  return false;
}

inline FitPlan plan_steps(int64_t problems, int64_t width, int64_t num_bases, int64_t num_iters) {
  FitPlan plan{};
  plan.step = step_shape(problems, width, num_bases);
  plan.blocks = plan.step.blocks;
  plan.rows = plan.step.rows;
  plan.launches = (problems + plan.step.problems - 1) / plan.step.problems * (num_iters + 1);
  plan.shared = 4 * size_t(step_shared(plan.step.rows, plan.step.tiles, false));
  return plan;
}

// Raises what EMCL_FIT asks for and cannot be.
[[noreturn]] inline void refuse_cluster(int blocks, const std::string& why) {
  throw std::invalid_argument("emcl: EMCL_FIT is cluster" + std::to_string(blocks) + ", but " + why +
                              "; set it to steps or auto");
}

// A cluster of up to so many blocks, or the reason why it cannot be.
inline FitPlan plan_asked_cluster(int blocks, int architecture, size_t most_shared, int64_t width, int64_t num_bases) {
  if (architecture < 90) refuse_cluster(blocks, "clusters need architecture 90, not " + std::to_string(architecture));
  if (blocks > largest_cluster(architecture))
    refuse_cluster(blocks, "architecture " + std::to_string(architecture) + " has clusters of up to 8 blocks");
  FitPlan plan{};
  if (plan_cluster(blocks, most_shared, width, num_bases, plan)) return plan;

  const int64_t widest = std::min<int64_t>(kClusterWidth, blocks * 64);
  if (width > widest)
    refuse_cluster(blocks, "a Gram matrix of width " + std::to_string(width) + " is wider than the " +
                               std::to_string(widest) + " that it holds");
  refuse_cluster(blocks, "its share of a Gram matrix of width " + std::to_string(width) + " with " +
                             std::to_string(num_bases) + " bases is more than the " + std::to_string(most_shared) +
                             " bytes of shared memory that a block may have");
}

// most_shared: bytes of shared memory that a block may have. By itself it takes 8 blocks where they hold the matrix,
// which every device with clusters has room for; `with_16`: whether 16 may be tried where they do not.
inline FitPlan fit_plan(FitWay way, int architecture, size_t most_shared, bool with_16, int64_t problems, int64_t width,
                        int64_t num_bases, int64_t num_iters) {
  if (way == FitWay::cluster8 || way == FitWay::cluster16)
    return plan_asked_cluster(way == FitWay::cluster8 ? 8 : 16, architecture, most_shared, width, num_bases);

  FitPlan plan{};
  if (way == FitWay::automatic && architecture >= 90) {
    if (plan_cluster(8, most_shared, width, num_bases, plan)) return plan;
    if (with_16 && largest_cluster(architecture) >= 16 && plan_cluster(16, most_shared, width, num_bases, plan))
      return plan;
  }
  return plan_steps(problems, width, num_bases, num_iters);
}

}  // namespace emcl
