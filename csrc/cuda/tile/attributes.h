// Attributes that some launches need: more shared memory than every kernel may have, and larger clusters. They are set
// once for each kernel and device, and to the most that the device has. If each launch set what it needs, two threads
// that launch one kernel in different sizes could lower each other's limit, and every launch would cost more.
//
// Free of CUDA types: the emulator's launches go through the same.
#pragma once

#include <cstddef>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <utility>

namespace emcl {

// What every kernel may have on every device.
constexpr size_t kUsualShared = 48 * 1024;  // bytes of a block
constexpr unsigned kUsualCluster = 8;       // blocks of a cluster

class OnceForKernel {
 public:
  // Calls set(), unless it was called for this kernel and device before. Of several threads one does, the others wait.
  template <class F>
  void operator()(const void* kernel, int device, const F& set) {
    const auto key = std::make_pair(kernel, device);
    {
      const std::shared_lock reading(mutex_);
      if (done_.count(key) != 0) return;
    }

    const std::unique_lock writing(mutex_);
    if (done_.count(key) != 0) return;
    set();  // if it throws, the next launch tries again
    done_.insert(key);
  }

  void forget() {
    const std::unique_lock writing(mutex_);
    done_.clear();
  }

 private:
  std::shared_mutex mutex_;
  std::set<std::pair<const void*, int>> done_;
};

inline OnceForKernel shared_memory_is_set, cluster_size_is_set;

// What a launch of `kernel` with so many bytes and blocks needs. set_shared() lets the kernel have as much shared
// memory as the device has for a block, set_cluster() clusters of any size.
template <class SetShared, class SetCluster>
void set_attributes(const void* kernel, int device, size_t shared, unsigned cluster, const SetShared& set_shared,
                    const SetCluster& set_cluster) {
  if (shared > kUsualShared) shared_memory_is_set(kernel, device, set_shared);
  if (cluster > kUsualCluster) cluster_size_is_set(kernel, device, set_cluster);
}

}  // namespace emcl
