// What a launcher gets from an op: the device, the stream, and memory. Free of CUDA's headers.
#pragma once

#include <cstddef>
#include <functional>

struct CUstream_st;  // cudaStream_t points to it

namespace emcl {

using Stream = CUstream_st*;

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
