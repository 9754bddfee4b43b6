// (GR) y = x + weight·(x·(r·scale))·rᵀ, and (BR), its backward.
//
// A warp takes 16 rows, and no thread ever needs what another one fetched: in both products the channels of a fragment may
// come in any order, and they are taken so that the 16 bytes which a thread fetches are its own numbers of the left
// fragment of x·r, and later its own sums of the second product. Where r fits into shared memory it stays there, rows are
// read once, and warps run independently; otherwise r passes by twice, and the rows with it.
#include "splits.h"
#include "start.h"
#include "tile.cuh"

namespace emcl {
namespace {

constexpr int kUnit = 32;  // channels taken at a time
constexpr int kMostWarps = 8, kMostThreads = 32 * kMostWarps;

// What a launch is to compute. x [P, N, D], r [P, D, K], scale [P, K]
template <class E>
struct Task {
  const E* x;
  const float *r, *scale;
  Rows shape;
  int bases;
  float weight;
  bool wide;            // rows may be accessed by 16 bytes
  E* y;                 // [P, N, D], or null
  float* coefficients;  // [P, N, K], x·r, or null
};

// BASES: K, padded.
template <class E, int COUNT, int BASES>
struct Thin {
  using Numbers = BfloatParts<E, COUNT>;
  using Unit = Tile<Numbers, kUnit, BASES>;  // r for one unit, its channels by their position in fragments
  static constexpr int kSize = Piece<E>::kSize;
  static constexpr int kPieces = 2 * kUnit / (4 * kSize);  // of a thread and a unit: rows sum_row(0) and sum_row(2) in turn
  static constexpr int kUnitBytes = kPieces * 32 * 16;     // of a warp and a unit
};

// Position of a fragment's row or column in its unit → channel of the unit.
template <class E>
__device__ __forceinline__ int channel_at(int position) {
  constexpr int kSize = Piece<E>::kSize;
  const int step = position / 16, own = position % 16;
  return step * 4 / kSize * 16 + own % 8 / 2 * kSize + step * 4 % kSize + own / 8 * 2 + own % 2;
}
// This thread's piece in its unit.
template <class E>
__device__ __forceinline__ int piece_channel(int piece) {
  return (piece / 2 * 4 + lane_of() % 4) * Piece<E>::kSize;
}
__device__ __forceinline__ int piece_row(int piece) { return sum_row(piece % 2 * 2); }

// Writes unit `unit` of a problem's r, element `first` and every `step`-th of it.
template <class E, class U>
__device__ __forceinline__ void write_unit(const U& to, const float* r, int64_t width, int bases, int64_t unit, int first,
                                           int step) {
  constexpr int kPairs = (U::kPitch - 8) / 2;
  for (int i = first; i < kUnit * kPairs; i += step) {
    const int position = i / kPairs, base = i % kPairs * 2;
    const int64_t channel = unit * kUnit + channel_at<E>(position);
    const float* from = r + channel * bases + base;
    const bool inside = channel < width;
    put(to, position, base, inside && base < bases ? from[0] : 0.0f, inside && base + 1 < bases ? from[1] : 0.0f);
  }
}

// A warp's 16 rows of one problem.
template <class E>
struct WarpRows {
  const Task<E>& task;
  int64_t problem, row;

  __device__ __forceinline__ int64_t offset(int64_t unit, int piece) const {
    return (problem * task.shape.rows + row + piece_row(piece)) * task.shape.width + unit * kUnit + piece_channel<E>(piece);
  }
  // Channels from this piece's first to the end of the row; none beyond the last row.
  __device__ __forceinline__ int64_t left(int64_t unit, int piece) const {
    return row + piece_row(piece) < task.shape.rows ? task.shape.width - unit * kUnit - piece_channel<E>(piece) : 0;
  }
  __device__ __forceinline__ void fetch(char* to, int64_t unit, int piece) const {
    const E* from = task.x + offset(unit, piece);
    const int64_t count = left(unit, piece);
    if (task.wide)
      copy_async(to, count > 0 ? from : task.x, count > 0);
    else
      store_piece(reinterpret_cast<E*>(to), gather_piece(from, count));
  }
};

template <class T, class E>
__device__ __forceinline__ Left<typename T::Numbers> left_of_pieces(const Piece<E> (&pieces)[T::kPieces], int step) {
  using P = typename T::Numbers;
  Left<P> left;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Piece<E>& piece = pieces[step * 4 / T::kSize * 2 + i % 2];
    const int number = step * 4 % T::kSize + i / 2 * 2;
    if constexpr (std::is_same_v<E, BFloat16>) {
      left.part[0][i] = piece.words[number / 2];
    } else {
      uint32_t parts[P::count];
      split_pair<P>(piece.number(number), piece.number(number + 1), parts);
#pragma unroll
      for (int part = 0; part < P::count; ++part) left.part[part][i] = parts[part];
    }
  }
  return left;
}

// c[16, K] += x·r over one unit
template <class T, class E, int N>
__device__ __forceinline__ void contract(float (&c)[1][N][4], const Piece<E> (&pieces)[T::kPieces],
                                         const typename T::Unit& unit) {
#pragma unroll
  for (int step = 0; step < kUnit / 16; ++step) {
    const auto left = left_of_pieces<T>(pieces, step);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      const auto right = load_right<Depth::rows>(unit, 8 * n, 16 * step);
      multiply(c[0][n], left, right, 0);
      multiply(c[0][n + 1], left, right, 1);
    }
  }
}

// x·r, once complete: out to memory, and scaled as the left operand of the second product.
template <class T, class E, int N>
__device__ __forceinline__ void turn(const WarpRows<E>& rows, float (&c)[1][N][4], Left<typename T::Numbers> (&scaled)[N / 2]) {
  const Task<E>& task = rows.task;
  if (task.coefficients != nullptr)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = rows.row + sum_row(i);
        const int base = 8 * n + sum_column(i);
        if (row < task.shape.rows && base < task.bases)
          task.coefficients[(rows.problem * task.shape.rows + row) * task.bases + base] = c[0][n][i];
      }
  if (task.y == nullptr) return;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    float factor[2];
    for (int i = 0; i < 2; ++i) {
      const int base = 8 * n + sum_column(i);
      factor[i] = base < task.bases ? task.weight * task.scale[rows.problem * task.bases + base] : 0.0f;
    }
    for (int i = 0; i < 4; ++i) c[0][n][i] *= factor[i % 2];
  }
#pragma unroll
  for (int n = 0; n < N; n += 2) scaled[n / 2] = left_of_sums<typename T::Numbers>(c[0][n], c[0][n + 1]);
}

// y = x + scaled·rᵀ for one unit
template <class T, class E, int K>
__device__ __forceinline__ void expand(const WarpRows<E>& rows, int64_t unit, const Left<typename T::Numbers> (&scaled)[K],
                                       const Piece<E> (&pieces)[T::kPieces], const typename T::Unit& r) {
  float sums[kUnit / 16][2][4] = {};
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int step = 0; step < kUnit / 16; ++step) {
      const auto right = load_right<Depth::columns>(r, 16 * step, 16 * k);
      multiply(sums[step][0], scaled[k], right, 0);
      multiply(sums[step][1], scaled[k], right, 1);
    }
#pragma unroll
  for (int i = 0; i < T::kPieces; ++i) {
    float numbers[T::kSize];
#pragma unroll
    for (int j = 0; j < T::kSize; ++j) {
      const int step = i / 2 * T::kSize / 4 + j / 4;
      numbers[j] = pieces[i].number(j) + sums[step][j / 2 % 2][j % 2 + i % 2 * 2];
    }
    write_numbers(rows.task.y + rows.offset(unit, i), numbers, rows.left(unit, i), rows.task.wide);
  }
}

// ---- r stays in shared memory ----------------------------------------------------------------------------------------

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
  char* own = memory + units * T::Unit::kBytes + warp_of() * units * T::kUnitBytes + lane_of() * 16;
  const auto unit_of_r = [&](int unit) { return typename T::Unit(memory + unit * T::Unit::kBytes); };
  const auto slot = [&](int unit, int piece) { return own + unit * T::kUnitBytes + piece * 512; };
  const auto load = [&](int unit, Piece<E>(&pieces)[T::kPieces]) {
    for (int i = 0; i < T::kPieces; ++i) pieces[i] = load_piece(reinterpret_cast<const E*>(slot(unit, i)));
  };
  // f(unit) for a quarter of the units.
  const auto each_unit = [&](int quarter, const auto& f) {
    for (int unit = units * quarter / kQuarters; unit < units * (quarter + 1) / kQuarters; ++unit) f(unit);
  };

  const int64_t stride = int64_t(blocks_per_problem) * warps * 16;
  WarpRows<E> rows{task, problem, (int64_t(blockIdx.x % blocks_per_problem) * warps + warp_of()) * 16};
  const auto fetch = [&](const WarpRows<E>& from, int unit) {
    if (from.row < task.shape.rows)
      for (int i = 0; i < T::kPieces; ++i) from.fetch(slot(unit, i), unit, i);
  };
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    each_unit(quarter, [&](int unit) { fetch(rows, unit); });
    copies_commit();
  }
  for (int unit = 0; unit < units; ++unit)
    write_unit<E>(unit_of_r(unit), task.r + problem * task.shape.width * task.bases, task.shape.width, task.bases, unit,
                  int(threadIdx.x), int(blockDim.x));
  __syncthreads();

  for (; rows.row < task.shape.rows; rows.row += stride) {
    const WarpRows<E> next{task, problem, rows.row + stride};
    const bool writes = task.y != nullptr;
    float total[1][N][4] = {}, c[1][N][4] = {};
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      wait_for_all_but(writes ? kQuarters - 1 - quarter : kQuarters - 1);
      each_unit(quarter, [&](int unit) {
        Piece<E> pieces[T::kPieces];
        load(unit, pieces);
        contract<T>(c, pieces, unit_of_r(unit));
        if ((unit + 1) % (kFlushDepth<typename T::Numbers> / kUnit) == 0) flush(total, c);
        if (!writes) fetch(next, unit);
      });
      if (!writes) copies_commit();
    }
    flush(total, c);
    Left<typename T::Numbers> scaled[N / 2];
    turn<T>(rows, total, scaled);
    if (!writes) continue;
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      each_unit(quarter, [&](int unit) {
        Piece<E> pieces[T::kPieces];
        load(unit, pieces);
        expand<T>(rows, unit, scaled, pieces, unit_of_r(unit));
        fetch(next, unit);
      });
      copies_commit();
    }
  }
}

// ---- r passes by -----------------------------------------------------------------------------------------------------

// r in parts [P, units], each as it lies in shared memory.
template <class E, int COUNT, int BASES>
__global__ void __launch_bounds__(kMostThreads) split_map(const float* r, int64_t width, int bases, uint16_t* parts) {
  using Unit = typename Thin<E, COUNT, BASES>::Unit;
  const int64_t units = divide_up(width, kUnit), problem = blockIdx.x / units;
  write_unit<E>(Unit(parts + int64_t(blockIdx.x) * Unit::kBytes / 2), r + problem * width * bases, width, bases,
                blockIdx.x % units, int(threadIdx.x), kMostThreads);
}

template <class E, int COUNT, int BASES>
struct Streamed {
  using T = Thin<E, COUNT, BASES>;
  static constexpr int kStages = COUNT == 3 ? 3 : 4;
  static constexpr int kSlot = T::Unit::kBytes + kMostWarps * T::kUnitBytes;
  static constexpr int kShared = kStages * kSlot;
};

template <class E, int COUNT, int BASES>
__global__ void __launch_bounds__(kMostThreads, 1) reconstruct_streamed(Task<E> task, const uint16_t* parts) {
  using S = Streamed<E, COUNT, BASES>;
  using T = typename S::T;
  constexpr int N = BASES / 8;
  const int64_t blocks = divide_up(task.shape.rows, 16 * kMostWarps), problem = blockIdx.x / blocks;
  const int units = int(divide_up(task.shape.width, kUnit));
  const WarpRows<E> rows{task, problem, int64_t(blockIdx.x % blocks) * 16 * kMostWarps + warp_of() * 16};
  parts += problem * units * (T::Unit::kBytes / 2);

  char* memory = dynamic_shared();
  const auto unit_of_r = [&](int step) { return typename T::Unit(memory + step % S::kStages * S::kSlot); };
  const auto slot = [&](int step, int piece) {
    return memory + step % S::kStages * S::kSlot + T::Unit::kBytes + warp_of() * T::kUnitBytes + piece * 512 + lane_of() * 16;
  };

  const auto start = [&](int unit) {
    for (int i = int(threadIdx.x) * 8; i < T::Unit::kBytes / 2; i += kMostThreads * 8)
      copy_async(unit_of_r(unit).memory + i, parts + int64_t(unit) * (T::Unit::kBytes / 2) + i, true);
    for (int i = 0; i < T::kPieces; ++i) rows.fetch(slot(unit, i), unit, i);
  };
  const auto load = [&](int unit, Piece<E>(&pieces)[T::kPieces]) {
    for (int i = 0; i < T::kPieces; ++i) pieces[i] = load_piece(reinterpret_cast<const E*>(slot(unit, i)));
  };

  Left<typename T::Numbers> scaled[N / 2];
  {
    float total[1][N][4] = {}, c[1][N][4] = {};
    each_step<S::kStages, false>(units, start, [](int) {}, [&](int unit) {
      Piece<E> pieces[T::kPieces];
      load(unit, pieces);
      contract<T>(c, pieces, unit_of_r(unit));
      if ((unit + 1) % (kFlushDepth<typename T::Numbers> / kUnit) == 0) flush(total, c);
    });
    flush(total, c);
    turn<T>(rows, total, scaled);
  }
  if (task.y == nullptr) return;
  __syncthreads();  // before slots are filled anew
  each_step<S::kStages, false>(units, start, [](int) {}, [&](int unit) {
    Piece<E> pieces[T::kPieces];
    load(unit, pieces);
    expand<T>(rows, unit, scaled, pieces, unit_of_r(unit));
  });
}

// ---- launches --------------------------------------------------------------------------------------------------------

template <class E, int COUNT, int BASES>
void launch_task(const Call& call, const Task<E>& task) {
  using T = Thin<E, COUNT, BASES>;
  constexpr int kFewestWarps = 3;
  const int64_t units = divide_up(task.shape.width, kUnit), map = units * T::Unit::kBytes, rows = units * T::kUnitBytes;
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
  launch(call.stream, split, split_map<E, COUNT, BASES>, task.r, task.shape.width, task.bases, parts);
  Launch shape{unsigned(task.shape.problems * divide_up(task.shape.rows, 16 * kMostWarps))};
  shape.threads = kMostThreads;
  shape.shared = Streamed<E, COUNT, BASES>::kShared;
  launch(call.stream, shape, reconstruct_streamed<E, COUNT, BASES>, task, static_cast<const uint16_t*>(parts));
}

// y = x + weight·(x·(r·scale))·rᵀ and coefficients = x·r; either may be null.
void map_rows(const Call& call, Element element, const void* x, const float* r, const float* scale, Rows shape,
              int64_t bases, double weight, void* y, float* coefficients) {
  with_precision(element, shape, [&](auto zero, auto count) {
    using E = decltype(zero);
    const bool wide = rows_are_wide<E>(x, shape.width) && rows_are_wide<E>(y, shape.width);
    const Task<E> task{static_cast<const E*>(x), r, scale, shape, int(bases), float(weight), wide, static_cast<E*>(y), coefficients};
    with_bases(bases, [&](auto padded) { launch_task<E, count, padded>(call, task); });
  });
}

// ---- backward --------------------------------------------------------------------------------------------------------

constexpr int kGradientThreads = 128, kGradientChannels = 8;

// d_r = weight·scale·g, and Σ g·r over each block's channels.
__global__ void __launch_bounds__(kGradientThreads)
    scale_gradient(const float* g, const float* r, const float* scale, Rows shape, int bases, float weight, float* d_r,
                   float* sums) {
  const int64_t blocks = divide_up(shape.width, kGradientChannels), problem = blockIdx.x / blocks;
  const int64_t first = blockIdx.x % blocks * kGradientChannels;
  const int base = int(threadIdx.x);
  if (base >= bases) return;
  const float factor = weight * scale[problem * bases + base];
  float sum = 0;
  for (int64_t channel = first; channel < first + kGradientChannels && channel < shape.width; ++channel) {
    const int64_t at = (problem * shape.width + channel) * bases + base;
    d_r[at] = factor * g[at];
    sum += g[at] * r[at];
  }
  sums[int64_t(blockIdx.x) * bases + base] = sum;
}

__global__ void __launch_bounds__(kGradientThreads)
    add_gradient(const float* sums, int64_t blocks, int bases, float factor, float* d_scale) {
  const int base = int(threadIdx.x);
  if (base >= bases) return;
  float total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += sums[(blockIdx.x * blocks + block) * bases + base];
  d_scale[int64_t(blockIdx.x) * bases + base] = factor * total;
}

}  // namespace

void reconstruct(const Call& call, Element element, const void* x, const float* responsibilities, const float* scale,
                 Rows shape, int64_t bases, double weight, void* y) {
  map_rows(call, element, x, responsibilities, scale, shape, bases, weight, y, nullptr);
}

// The map is symmetric, so d_x is the map of d_y. With h = x·r, u = d_y·r and g = d_yᵀ·h + xᵀ·u:
// d_r = weight·g·scale, and d_scale = weight·Σ_n h·u = weight·Σ_d g·r / 2.
void reconstruct_backward(const Call& call, Element element, const void* d_y, const void* x, const float* responsibilities,
                          const float* scale, Rows shape, int64_t bases, double weight, void* d_x,
                          float* d_responsibilities, float* d_scale) {
  const auto floats = [&](int64_t count) { return static_cast<float*>(call.workspace(size_t(count) * sizeof(float))); };
  const int64_t blocks = divide_up(shape.width, kGradientChannels);
  float* h = floats(shape.problems * shape.rows * bases);
  float* u = floats(shape.problems * shape.rows * bases);
  float* g = floats(shape.problems * shape.width * bases);
  float* sums = floats(shape.problems * blocks * bases);
  map_rows(call, element, d_y, responsibilities, scale, shape, bases, weight, d_x, u);
  map_rows(call, element, x, responsibilities, scale, shape, bases, weight, nullptr, h);
  sum_over_rows(call, element, {d_y, h}, {x, u}, shape, bases, g);
  Launch scaled{unsigned(shape.problems * blocks)};
  scaled.threads = kGradientThreads;
  launch(call.stream, scaled, scale_gradient, static_cast<const float*>(g), responsibilities, scale, shape, int(bases),
         float(weight), d_responsibilities, sums);
  Launch added{unsigned(shape.problems)};
  added.threads = kGradientThreads;
  launch(call.stream, added, add_gradient, static_cast<const float*>(sums), blocks, int(bases), float(0.5 * weight), d_scale);
}

}  // namespace emcl
