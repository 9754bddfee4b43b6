// Preloaded before the C++ kernels: the n-th piece of scratch memory that is asked for from now on is not there.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>

static atomic_long left = -1;

void fail_at(long n) { atomic_store(&left, n); }
long not_reached(void) { return atomic_load(&left); }

void* aligned_alloc(size_t alignment, size_t size) {
  static void* (*real)(size_t, size_t);
  if (real == NULL) real = (void* (*)(size_t, size_t))dlsym(RTLD_NEXT, "aligned_alloc");
  if (atomic_load(&left) > 0 && atomic_fetch_sub(&left, 1) == 1) return NULL;
  return real(alignment, size);
}
