// The module fused_losses._C: what was built, for `info` and the tests. It needs neither torch nor a vector unit.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "formulas/pointwise.h"

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

std::vector<std::string> pointwise_losses() {
  return {
#define FUSED_LOSSES_NAME(name, Formula) #name,
      FUSED_LOSSES_POINTWISE(FUSED_LOSSES_NAME)
#undef FUSED_LOSSES_NAME
  };
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What was built.";
  m.attr("compiler") = __VERSION__;
  m.attr("torch_version") = FUSED_LOSSES_TORCH_VERSION;
  m.attr("cpu_libraries") = split(FUSED_LOSSES_CPU_LIBRARIES);
  m.attr("cuda_architectures") = std::vector<std::string>{};
  m.attr("pointwise_losses") = pointwise_losses();
  m.attr("softmax_losses") = std::vector<std::string>{"cross_entropy", "nll_loss"};
}
