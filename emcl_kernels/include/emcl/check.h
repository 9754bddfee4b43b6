// What an op must know of its arguments before it touches their memory. The ops of Python have checked theirs already;
// this is for whoever calls torch.ops.emcl_native directly, who gets a RuntimeError instead of a crash.
#pragma once

#include <emcl/dtype.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>

namespace emcl {

// Checks the tensors of one call.
//
//   const Check check("em_moments", x);
//   check.rows("x", x, {problems, rows, width});
//   check.numbers("gram", gram, {problems, width, width});
class Check {
 public:
  // first: the tensor that says the device and the number type of all others; it must have a kernel's number type.
  Check(const char* op, const Tensor& first)
      : op_(op), rows_(first.scalar_type()), cpu_(first.is_cpu()), index_(first.get_device_index()) {
    const bool known = rows_ == ScalarType::Float || rows_ == ScalarType::Double || rows_ == ScalarType::BFloat16 ||
                       rows_ == ScalarType::Half;
    require(known, "there is no kernel for ", torch::headeronly::toString(rows_));
  }

  // Raises unless `condition` holds. message: text and numbers that say what is wrong, and what was expected; they are
  // put together only if it does not hold.
  template <class... Parts>
  void require(bool condition, const Parts&... message) const {
    if (!condition) throw std::runtime_error(text("emcl: ") + op_ + ": " + (text(message) + ...));
  }

  // Raises unless a setting is a number that float32 has, which all kernels but those of float64 compute with.
  void finite(const char* name, double value) const {
    require(std::abs(value) <= double(std::numeric_limits<float>::max()), name, " is ", value,
            "; expected a finite number");
  }

  // The product of all sizes of a tensor but the last `own`, of which it must have that many: the number of problems.
  int64_t problems(const char* name, const Tensor& tensor, int64_t own) const {
    const auto sizes = tensor.sizes();
    const int64_t leading = int64_t(sizes.size()) - own;
    require(leading >= 0, name, " has ", int64_t(sizes.size()), " dimensions; expected ", own, " or more");
    int64_t count = 1;
    bool fits = true;
    for (int64_t i = 0; i < leading; ++i) fits = fits && !__builtin_mul_overflow(count, sizes[size_t(i)], &count);
    require(fits, name, " has more numbers than can be counted");
    return count;
  }

  // A tensor in the number type of the first one, of these sizes. The first of them may be spread over any number of
  // leading dimensions, as that of problems is: [6, D] for {6, D}, but also [2, 3, D], and [D] for {1, D}.
  void rows(const char* name, const Tensor& tensor, std::initializer_list<int64_t> sizes) const {
    tensor_is(name, tensor, rows_, sizes);
  }
  // A tensor in the type that rows are accumulated in.
  void numbers(const char* name, const Tensor& tensor, std::initializer_list<int64_t> sizes) const {
    tensor_is(name, tensor, accumulation(rows_), sizes);
  }
  // The same, or an empty tensor.
  void rows_or_none(const char* name, const Tensor& tensor, std::initializer_list<int64_t> sizes) const {
    if (tensor.numel() != 0) rows(name, tensor, sizes);
  }
  void numbers_or_none(const char* name, const Tensor& tensor, std::initializer_list<int64_t> sizes) const {
    if (tensor.numel() != 0) numbers(name, tensor, sizes);
  }

 private:
  void tensor_is(const char* name, const Tensor& tensor, ScalarType dtype, std::initializer_list<int64_t> sizes) const {
    if (!has_sizes(tensor, sizes)) require(false, name, " has shape ", tensor.sizes(), "; expected ", sizes);

    const ScalarType found = tensor.scalar_type();
    require(found == dtype, name, " is ", torch::headeronly::toString(found), "; expected ",
            torch::headeronly::toString(dtype));
    require(tensor.is_contiguous(), name, " is not contiguous; pass ", name, ".contiguous()");
    require(tensor.is_cpu() == cpu_ && tensor.get_device_index() == index_, name,
            " is on another device than the rest; pass all on one device");
  }

  static bool has_sizes(const Tensor& tensor, std::initializer_list<int64_t> expected) {
    const auto sizes = tensor.sizes();
    const size_t own = expected.size() - 1;
    if (sizes.size() < own) return false;

    // Products of sizes that are too large for their type are those of no tensor that was expected.
    const size_t leading = sizes.size() - own;
    int64_t count = 1;
    for (size_t i = 0; i < leading; ++i)
      if (__builtin_mul_overflow(count, sizes[i], &count)) return false;
    if (count != *expected.begin()) return false;
    for (size_t i = 0; i < own; ++i)
      if (sizes[leading + i] != expected.begin()[1 + i]) return false;
    return true;
  }

  static std::string text(const char* part) { return part; }
  static std::string text(int64_t part) { return std::to_string(part); }
  static std::string text(double part) {
    char digits[32];
    std::snprintf(digits, sizeof(digits), "%g", part);
    return digits;
  }
  template <class Sizes>
  static std::string text(const Sizes& sizes) {
    std::string all;
    for (const int64_t size : sizes) all += (all.empty() ? "" : ", ") + std::to_string(size);
    return "[" + all + "]";
  }

  const char* op_;
  ScalarType rows_;
  bool cpu_;
  int32_t index_;
};

}  // namespace emcl
