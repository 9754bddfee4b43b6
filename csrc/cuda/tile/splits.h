// Into how many parts the rows of a problem are cut. It depends on shapes only, so that the order of sums does too.
#pragma once

#include <cstdint>

#include "cuda/tile/device.cuh"

namespace emcl {

// Blocks that an H100 or H200 runs at a time where each takes a whole multiprocessor.
constexpr int64_t kBlocksAtATime = 132;

__host__ __device__ constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Splits {
  int64_t count, rows;  // rows of each but the last
};

// The least time for `problems` of so many rows when a block takes one split, rows are taken `step` at a time, and to
// start and end a block takes as long as `overhead` rows.
inline Splits split_rows(int64_t problems, int64_t rows, int64_t step, int64_t overhead) {
  Splits best{1, divide_up(rows, step) * step};
  int64_t least = INT64_MAX;
  for (int64_t wanted = 1; wanted == 1 || problems * wanted <= 4 * kBlocksAtATime; ++wanted) {
    const int64_t each = divide_up(divide_up(rows, wanted), step) * step, count = divide_up(rows, each);
    const int64_t time = divide_up(problems * count, kBlocksAtATime) * (each + overhead);
    if (time < least) {
      least = time;
      best = {count, each};
    }
    if (each == step) break;
  }
  return best;
}

}  // namespace emcl
