// The kernels for one instruction set. Compiled once for each, with the compiler flags of it.
#include "pooled_calls.h"
#include "project.h"

namespace emcl {

#define EMCL_KERNELS(E)             \
  {moments<E>,                      \
   moments_backward<E>,             \
   fit<Compute<E>>,                 \
   fit_backward<Compute<E>>,        \
   reconstruct<E>,                  \
   reconstruct_backward<E>,         \
   project<E>,                      \
   call_pooled_moments<E>,          \
   call_pooled_moments_backward<E>, \
   call_pooled_cosine<E>,           \
   call_pooled_cosine_backward<E>,  \
   pooled_block<E>}
#define EMCL_TABLE {EMCL_KERNELS(float), EMCL_KERNELS(double), EMCL_KERNELS(BFloat16), EMCL_KERNELS(Float16)}

#if defined(__AVX512F__)
extern const Kernels kAvx512[kElements] = EMCL_TABLE;
#elif defined(__AVX2__)
extern const Kernels kAvx2[kElements] = EMCL_TABLE;
#else
extern const Kernels kBaseline[kElements] = EMCL_TABLE;
#endif

}  // namespace emcl
