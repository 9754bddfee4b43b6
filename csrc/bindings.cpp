// emcl_kernels._bindings: how the package was compiled, and the cost model. Nothing with tensors, so no torch.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/fit/fit_plan.h"
#include "plan.h"

namespace py = pybind11;

namespace {

int64_t element_size(const std::string& dtype) {
  if (dtype == "float64") return 8;
  if (dtype == "float32") return 4;
  if (dtype == "bfloat16" || dtype == "float16") return 2;
  throw std::invalid_argument("dtype is \"" + dtype +
                              "\", expected one of float64, float32, bfloat16, float16; convert the input first");
}

// Sizes of which products of several are still integers; no device has room for more.
void require_at_most(const char* argument, int64_t value, int64_t most) {
  if (value > most)
    throw std::invalid_argument(std::string(argument) + " is " + std::to_string(value) + ", expected at most " +
                                std::to_string(most));
}

const char* name(emcl::Form form) { return form == emcl::Form::gram ? "gram" : "loop"; }

py::dict to_dict(const emcl::Cost& cost) {
  py::dict result;
  result["flops"] = py::int_(py::float_(cost.flops));
  result["bytes"] = py::int_(py::float_(cost.bytes));
  return result;
}

py::dict plan(int64_t rows, int64_t width, int64_t bases, int64_t iters, const std::string& dtype) {
  const emcl::Plan chosen = emcl::plan(rows, width, bases, iters, element_size(dtype));
  py::dict result;
  result["form"] = name(chosen.form);
  result["tiles"] = py::make_tuple(chosen.row_tile, chosen.column_tile);
  result["gram"] = to_dict(chosen.gram);
  result["loop"] = to_dict(chosen.loop);
  return result;
}

py::dict pooled_cost(int64_t texts, int64_t videos, int64_t frames, int64_t width, int64_t bases, int64_t iters,
                     const std::string& dtype, bool kept) {
  const emcl::PooledCost cost =
      emcl::pooled_cost(texts, videos, frames, width, bases, iters, element_size(dtype), kept);
  py::dict result;
  result["forward"] = to_dict(cost.forward);
  result["backward"] = to_dict(cost.backward);
  return result;
}

py::dict fit_plan(int64_t problems, int64_t width, int64_t bases, int64_t iters, int architecture, int64_t shared,
                  const std::string& way) {
  emcl::plan_detail::require_positive("problems", problems);
  emcl::plan_detail::require_positive("width", width);
  emcl::plan_detail::require_positive("bases", bases);
  emcl::plan_detail::require_positive("iters", iters);
  emcl::plan_detail::require_positive("shared", shared);
  require_at_most("problems", problems, int64_t(1) << 31);
  require_at_most("width", width, int64_t(1) << 20);
  require_at_most("bases", bases, int64_t(1) << 16);
  require_at_most("iters", iters, emcl::kMostIterations);
  const emcl::FitPlan chosen =
      emcl::fit_plan(emcl::fit_way(way), architecture, size_t(shared), true, problems, width, bases, iters);
  py::dict result;
  result["way"] = !chosen.cluster ? "steps" : chosen.blocks > 8 ? "cluster16" : "cluster8";
  result["blocks"] = chosen.blocks;
  result["rows"] = chosen.rows;
  result["launches"] = chosen.launches;
  result["shared"] = chosen.shared;
  return result;
}

py::dict build_info() {
  py::dict result;
  result["version"] = EMCL_VERSION;
#if defined(__clang__)
  result["compiler"] = "clang " __clang_version__;
#else
  result["compiler"] = "gcc " __VERSION__;
#endif
  result["cxx_standard"] = static_cast<long>(__cplusplus / 100 % 100);
  result["pybind11"] = py::str(PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR));
  return result;
}

}  // namespace

PYBIND11_MODULE(_bindings, module) {
  module.doc() = "How emcl_kernels was compiled, and its cost model.";
  module.def("build_info", &build_info, "Version, compiler and C++ standard of this module.");
  module.def(
      "plan", &plan, py::arg("rows"), py::arg("width"), py::arg("bases"), py::arg("iters"),
      py::arg("dtype") = "float32",
      "Which form of EM the cost model picks for x [rows, width], with tiles (rows, columns), and the FLOPs and\n"
      "bytes of both forms. Raises ValueError for a size below one or a dtype that has no kernel.");
  module.def(
      "pooled_cost", &pooled_cost, py::arg("texts"), py::arg("videos"), py::arg("frames"), py::arg("width"),
      py::arg("bases"), py::arg("iters"), py::arg("dtype") = "float32", py::arg("kept") = true,
      "FLOPs and bytes of the pooled similarity, forward and backward, by their leading terms; bases = 0: without\n"
      "EM; kept: whether the moments keep the inner products for later passes, as emcl_kernels.pooled decides.\n"
      "Raises ValueError as plan does.");
  module.def(
      "fit_plan", &fit_plan, py::arg("problems"), py::arg("width"), py::arg("bases"), py::arg("iters"),
      py::arg("architecture") = 90, py::arg("shared") = 227 * 1024, py::arg("way") = "auto",
      "How the CUDA kernels lay EM on a Gram matrix out: way (cluster8, cluster16 or steps), blocks of a problem,\n"
      "rows of the matrix in each, launches, and bytes of shared memory of a block. architecture: 80, 90, ...;\n"
      "shared: bytes that a block may have; way: as EMCL_FIT. Raises ValueError for an unknown way, and for one\n"
      "that cannot be.");
}
