// Sizes in which the CPU kernels take their operands: for the kernels themselves and for the plan that reports them.
#pragma once

#include <cstdint>

namespace emcl {

constexpr int64_t kDepth = 256;         // a packed panel of this depth stays in the second cache
constexpr int64_t kStrip = 2 * kDepth;  // rows of x that are packed at a time for xᵀx
constexpr int64_t kPartRows = 256;      // rows of x, at least, in each part of xᵀx that is summed by one thread
constexpr int64_t kMostParts = 16;
constexpr int64_t kRowBlock = 48;      // rows that stay in the second cache between two products
constexpr int64_t kChannelBlock = 24;  // channels of a step's smallest unit; partial sums are added in its order

}  // namespace emcl
