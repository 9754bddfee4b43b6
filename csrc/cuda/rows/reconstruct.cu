// (GR) y = x + weight·(x·(r·scale))·rᵀ, and (BR), its backward.
//
// Where r fits into shared memory it stays there, rows are read once, and warps run independently. Otherwise r passes
// by twice, and the rows with it.
#include "cuda/rows/map_rows.cuh"
#include "cuda/rows/start.h"
#include "cuda/tile/splits.h"

namespace emcl {
namespace {

constexpr int kMostWarps = 8, kMostThreads = 32 * kMostWarps;

// ---- r stays in shared memory ---------------------------------------------------------------------------------------

__device__ __forceinline__ void wait_for_all_but(int groups) {
  if (groups == 0) copies_wait<0>();
  if (groups == 1) copies_wait<1>();
  if (groups == 2) copies_wait<2>();
  if (groups == 3) copies_wait<3>();
}

// Blocks of one problem share its tiles of 16 rows among their warps. While a tile's last product is computed, the next
// tile takes its place in shared memory piece by piece.
template <class E, int COUNT, int BASES>
__global__ void __launch_bounds__(kMostThreads, 1) reconstruct_resident(Task<E> task, int blocks_per_problem) {
  using T = Thin<E, COUNT, BASES>;
  constexpr int N = BASES / 8, kQuarters = 4;
  const int64_t problem = blockIdx.x / blocks_per_problem;
  const int warps = int(blockDim.x) / 32, units = int(divide_up(task.shape.width, kUnit));
  char* memory = dynamic_shared();
  char* own = memory + units * T::Unit::kBytes + warp_of() * units * T::kRowBytes + lane_of() * 16;
  const auto unit_of_r = [&](int unit) { return typename T::Unit(memory + unit * T::Unit::kBytes); };
  const auto slot = [&](int unit) { return own + unit * T::kRowBytes; };
  // f(unit) for a quarter of the units.
  const auto each_unit = [&](int quarter, const auto& f) {
    for (int unit = units * quarter / kQuarters; unit < units * (quarter + 1) / kQuarters; ++unit) f(unit);
  };

  const bool writes = task.y != nullptr;
  const int64_t stride = int64_t(blocks_per_problem) * warps * 16;
  WarpRows<T, E> rows(task, problem, (int64_t(blockIdx.x % blocks_per_problem) * warps + warp_of()) * 16);
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    each_unit(quarter, [&](int unit) { rows.fetch(slot(unit), unit, task.wide); });
    copies_commit();
  }
  const float* r = task.r + problem * task.shape.width * task.num_bases;
  write_units<E, typename T::Unit>(reinterpret_cast<uint16_t*>(memory), r, task.shape.width, task.num_bases, 0, units);
  __syncthreads();

  while (rows.row < task.shape.rows) {
    const WarpRows<T, E> next(task, problem, rows.row + stride);
    float total[1][N][4] = {}, c[1][N][4] = {};
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      wait_for_all_but(writes ? kQuarters - 1 - quarter : kQuarters - 1);
      each_unit(quarter, [&](int unit) {
        contract(c, UnitPieces<T, E>(slot(unit)), unit_of_r(unit));
        if ((unit + 1) % (kFlushDepth<typename T::Numbers> / kUnit) == 0) flush(total, c);
        if (!writes) next.fetch(slot(unit), unit, task.wide);
      });
      if (!writes) copies_commit();
    }
    flush(total, c);
    Left<typename T::Numbers> scaled[N / 2];
    turn<T>(task, problem, rows.row, total, scaled);
    for (int quarter = 0; quarter < kQuarters && writes; ++quarter) {
      each_unit(quarter, [&](int unit) {
        expand(rows, unit, scaled, UnitPieces<T, E>(slot(unit)), unit_of_r(unit), task.wide);
        next.fetch(slot(unit), unit, task.wide);
      });
      copies_commit();
    }
    rows = next;
  }
}

// ---- r passes by ----------------------------------------------------------------------------------------------------

// r in parts [P, units], each as it lies in shared memory.
template <class E, int COUNT, int BASES>
__global__ void __launch_bounds__(kMostThreads)
    split_map(const float* r, int64_t width, int num_bases, uint16_t* parts) {
  using Unit = typename Thin<E, COUNT, BASES>::Unit;
  const int units = int(divide_up(width, kUnit)), unit = int(blockIdx.x % units);
  const int64_t problem = blockIdx.x / units;
  write_units<E, Unit>(parts + int64_t(blockIdx.x) * (Unit::kBytes / 2), r + problem * width * num_bases, width,
                       num_bases, unit, unit + 1);
}

template <class E, int COUNT, int BASES>
struct Streamed {
  using T = Thin<E, COUNT, BASES>;
  static constexpr int kStages = COUNT == 3 ? 3 : 4;
  static constexpr int kSlot = T::Unit::kBytes + kMostWarps * T::kRowBytes;
  static constexpr int kShared = kStages * kSlot;
  static_assert(kShared <= kNeededShared);
};

template <class E, int COUNT, int BASES>
__global__ void __launch_bounds__(kMostThreads, 1) reconstruct_streamed(Task<E> task, const uint16_t* parts) {
  using S = Streamed<E, COUNT, BASES>;
  using T = typename S::T;
  constexpr int N = BASES / 8;
  const int64_t blocks = divide_up(task.shape.rows, 16 * kMostWarps), problem = blockIdx.x / blocks;
  const int units = int(divide_up(task.shape.width, kUnit));
  const WarpRows<T, E> rows(task, problem, int64_t(blockIdx.x % blocks) * 16 * kMostWarps + warp_of() * 16);
  parts += problem * units * (T::Unit::kBytes / 2);

  char* memory = dynamic_shared();
  const auto unit_of_r = [&](int step) { return typename T::Unit(memory + step % S::kStages * S::kSlot); };
  const auto slot = [&](int step) {
    return memory + step % S::kStages * S::kSlot + T::Unit::kBytes + warp_of() * T::kRowBytes + lane_of() * 16;
  };

  const auto start = [&](int unit) {
    for (int i = int(threadIdx.x) * 8; i < T::Unit::kBytes / 2; i += kMostThreads * 8)
      copy_async(unit_of_r(unit).memory + i, parts + int64_t(unit) * (T::Unit::kBytes / 2) + i, true);
    rows.fetch(slot(unit), unit, task.wide);
  };

  Left<typename T::Numbers> scaled[N / 2];
  {
    float total[1][N][4] = {}, c[1][N][4] = {};
    each_step<S::kStages, false>(
        units, start, [](int) {},
        [&](int unit) {
          contract(c, UnitPieces<T, E>(slot(unit)), unit_of_r(unit));
          if ((unit + 1) % (kFlushDepth<typename T::Numbers> / kUnit) == 0) flush(total, c);
        });
    flush(total, c);
    turn<T>(task, problem, rows.row, total, scaled);
  }
  if (task.y == nullptr) return;
  __syncthreads();  // before slots are filled anew
  each_step<S::kStages, false>(
      units, start, [](int) {},
      [&](int unit) { expand(rows, unit, scaled, UnitPieces<T, E>(slot(unit)), unit_of_r(unit), task.wide); });
}

// ---- launches -------------------------------------------------------------------------------------------------------

template <class E, int COUNT, int BASES>
void launch_task(const Call& call, const Task<E>& task) {
  using T = Thin<E, COUNT, BASES>;
  constexpr int kFewestWarps = 3;
  const int64_t units = divide_up(task.shape.width, kUnit), map = units * T::Unit::kBytes, rows = units * T::kRowBytes;
  if constexpr (BASES < 128) {  // more would leave no registers
    const int64_t fit = (int64_t(call.device.most_shared) - map) / rows, warps = fit < kMostWarps ? fit : kMostWarps;
    if (fit >= kFewestWarps) {
      const int64_t blocks = split_rows(task.shape.problems, task.shape.rows, 16 * warps, 64).count;
      Launch shape{unsigned(task.shape.problems * blocks)};
      shape.threads = unsigned(32 * warps);
      shape.shared = size_t(map + warps * rows);
      return launch(call.stream, shape, reconstruct_resident<E, COUNT, BASES>, task, int(blocks));
    }
  }
  auto* parts = static_cast<uint16_t*>(call.workspace(size_t(task.shape.problems * map)));
  Launch split{unsigned(task.shape.problems * units)};
  split.threads = kMostThreads;
  launch(call.stream, split, split_map<E, COUNT, BASES>, task.r, task.shape.width, task.num_bases, parts);
  Launch shape{unsigned(task.shape.problems * divide_up(task.shape.rows, 16 * kMostWarps))};
  shape.threads = kMostThreads;
  shape.shared = Streamed<E, COUNT, BASES>::kShared;
  launch(call.stream, shape, reconstruct_streamed<E, COUNT, BASES>, task, static_cast<const uint16_t*>(parts));
}

// y = x + weight·(x·(r·scale))·rᵀ and coefficients = x·r; either may be null.
void map_rows(const Call& call, Element element, const void* x, const float* r, const float* scale, Rows shape,
              int64_t num_bases, double weight, void* y, float* coefficients) {
  with_precision(element, shape, [&](auto zero, auto count) {
    using E = decltype(zero);
    const bool wide = rows_are_wide<E>(x, shape.width) && rows_are_wide<E>(y, shape.width);
    const Task<E> task{static_cast<const E*>(x), r,           scale, shape, int(num_bases), float(weight), wide,
                       static_cast<E*>(y),       coefficients};
    with_bases(num_bases, [&](auto padded) { launch_task<E, count, padded>(call, task); });
  });
}

// ---- backward -------------------------------------------------------------------------------------------------------

constexpr int kGradientThreads = 128, kGradientChannels = 8;

// d_r = weight·scale·g, and Σ g·r over each block's channels.
__global__ void __launch_bounds__(kGradientThreads)
    scale_gradient(const float* g, const float* r, const float* scale, Rows shape, int num_bases, float weight,
                   float* d_r, float* sums) {
  const int64_t blocks = divide_up(shape.width, kGradientChannels), problem = blockIdx.x / blocks;
  const int64_t first = blockIdx.x % blocks * kGradientChannels;
  const int base = int(threadIdx.x);
  if (base >= num_bases) return;
  const float factor = weight * scale[problem * num_bases + base];
  float sum = 0;
  for (int64_t channel = first; channel < first + kGradientChannels && channel < shape.width; ++channel) {
    const int64_t at = (problem * shape.width + channel) * num_bases + base;
    d_r[at] = factor * g[at];
    sum += g[at] * r[at];
  }
  sums[int64_t(blockIdx.x) * num_bases + base] = sum;
}

__global__ void __launch_bounds__(kGradientThreads)
    add_gradient(const float* sums, int64_t blocks, int num_bases, float factor, float* d_scale) {
  const int base = int(threadIdx.x);
  if (base >= num_bases) return;
  float total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += sums[(blockIdx.x * blocks + block) * num_bases + base];
  d_scale[int64_t(blockIdx.x) * num_bases + base] = factor * total;
}

}  // namespace

void reconstruct(const Call& call, Element element, const void* x, const float* responsibilities, const float* scale,
                 Rows shape, int64_t num_bases, double weight, void* y) {
  map_rows(call, element, x, responsibilities, scale, shape, num_bases, weight, y, nullptr);
}

// The map is symmetric, so d_x is the map of d_y. With h = x·r, u = d_y·r and g = d_yᵀ·h + xᵀ·u:
// d_r = weight·g·scale, and d_scale = weight·Σ_n h·u = weight·Σ_d g·r / 2.
void reconstruct_backward(const Call& call, Element element, const void* d_y, const void* x,
                          const float* responsibilities, const float* scale, Rows shape, int64_t num_bases,
                          double weight, void* d_x, float* d_responsibilities, float* d_scale) {
  const auto floats = [&](int64_t count) { return static_cast<float*>(call.workspace(size_t(count) * sizeof(float))); };
  const int64_t blocks = divide_up(shape.width, kGradientChannels);
  float* h = floats(shape.problems * shape.rows * num_bases);
  float* u = floats(shape.problems * shape.rows * num_bases);
  float* g = floats(shape.problems * shape.width * num_bases);
  float* sums = floats(shape.problems * blocks * num_bases);
  map_rows(call, element, d_y, responsibilities, scale, shape, num_bases, weight, d_x, u);
  map_rows(call, element, x, responsibilities, scale, shape, num_bases, weight, nullptr, h);
  sum_over_rows(call, element, {d_y, h}, {x, u}, shape, num_bases, g);
  Launch scaled{unsigned(shape.problems * blocks)};
  scaled.threads = kGradientThreads;
  launch(call.stream, scaled, scale_gradient, static_cast<const float*>(g), responsibilities, scale, shape,
         int(num_bases), float(weight), d_responsibilities, sums);
  Launch added{unsigned(shape.problems)};
  added.threads = kGradientThreads;
  launch(call.stream, added, add_gradient, static_cast<const float*>(sums), blocks, int(num_bases), float(0.5 * weight),
         d_scale);
}

}  // namespace emcl
