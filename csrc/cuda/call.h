// What a launcher gets from an op: the device, the stream, and memory. Free of CUDA's headers.
#pragma once

#include <cstddef>
#include <functional>

struct CUstream_st;  // cudaStream_t points to it

namespace emcl {

using Stream = CUstream_st*;

// Bytes of shared memory that a device must allow a block to have: launches that do not ask the device how much there
// is ask for no more. Compute capability 8.0, 8.7, 9.0 and 10.x allow it; 8.6, 8.9 and 12.x allow 101376, and are left
// to other backends.
constexpr size_t kNeededShared = 163 * 1024;

// What launchers ask of a device.
struct Device {
  int index;
  int architecture;  // 80, 90, ...
  int multiprocessors;
  size_t most_shared;  // bytes that a block may have
};

// Functions that take it only launch on the stream; nothing is copied to the host, and nothing waits.
struct Call {
  Stream stream;
  Device device;
  // bytes of device memory, aligned to 256, that live until the call's work is done
  std::function<void*(size_t)> workspace;
};

}  // namespace emcl
