// An op in C++: a function on tensors, in one file, which registers itself when its library is loaded.
//
//   #include <emcl/op.h>
//
//   void double_rows(const emcl::Tensor& x, double factor, const emcl::Tensor& y) {
//     ...  // fills y
//   }
//   EMCL_REGISTER(double_rows)
//
// The function's arguments are the op's inputs in their order (Tensor, int64_t, double, bool), then its outputs. All
// tensors are contiguous; outputs are allocated by the caller and filled here. Nothing but torch's stable ABI is used,
// so that one build serves torch 2.10 and every later version.
//
// By default the op runs on CPU tensors; compile with -DEMCL_KEY=CUDA for those of a GPU.
#pragma once

#if !defined(TORCH_TARGET_VERSION)
#define TORCH_TARGET_VERSION 0x020a000000000000
#endif
#if !defined(TORCH_STABLE_ONLY)
#define TORCH_STABLE_ONLY
#endif

#include <emcl/check.h>
#include <emcl/dtype.h>
#include <emcl/parallel.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

// The names under which torch knows the library's ops.
#if !defined(EMCL_NAMESPACE)
#define EMCL_NAMESPACE emcl_native
#endif
#if !defined(EMCL_KEY)
#define EMCL_KEY CPU
#endif

// Registers a function as the op of the same name. A file may have any number of them, and so may a library.
#define EMCL_REGISTER(name) \
  STABLE_TORCH_LIBRARY_IMPL(EMCL_NAMESPACE, EMCL_KEY, emcl_library) { emcl_library.impl(#name, TORCH_BOX(&name)); }
