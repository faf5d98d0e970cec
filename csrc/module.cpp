// The module fused_losses._C: what was built, for `info` and the tests. It needs neither torch nor a vector unit.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "formulas/losses.h"

namespace {

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin < list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    parts.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// The losses that kernels were compiled for, by engine: registry.py must list the same.
std::map<std::string, std::vector<std::string>> losses() {
#define FUSED_LOSSES_NAME(name, ...) #name,
  return {
      {"pointwise", {FUSED_LOSSES_POINTWISE(FUSED_LOSSES_NAME)}},
      {"vectors", {FUSED_LOSSES_VECTORS(FUSED_LOSSES_NAME)}},
      {"softmax", {FUSED_LOSSES_SOFTMAX(FUSED_LOSSES_NAME)}},
      {"class_margin", {FUSED_LOSSES_CLASS_MARGIN(FUSED_LOSSES_NAME)}},
  };
#undef FUSED_LOSSES_NAME
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What was built.";
  m.attr("compiler") = __VERSION__;
  m.attr("torch_version") = FUSED_LOSSES_TORCH_VERSION;
  m.attr("cpu_libraries") = split(FUSED_LOSSES_CPU_LIBRARIES);
  m.attr("cuda_architectures") = split(FUSED_LOSSES_CUDA_ARCHITECTURES);
  m.attr("losses") = losses();
}
