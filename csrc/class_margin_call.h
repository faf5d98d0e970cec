// A call of a class margin operator, from tensors to the arguments of an engine. See loss_operators.h.
#pragma once

#include "class_margin_arguments.h"
#include "loss_operators.h"

namespace fused_losses {

class ClassMarginCall {
 public:
  static constexpr bool kHasStatistics = false;

  // A loss without parameters is the one that takes lists of targets.
  ClassMarginCall(const Operands& operands, const std::vector<double>& parameters, int64_t reduction,
                  const OptionalTensor& upstream)
      : input_(operands.input), target_(operands.target) {
    if (target_.dtype != ScalarType::Long || input_.dims < 1 || input_.dims > 2 || operands.extra) {
      throw std::runtime_error("fused_losses: expected scores of one or two dimensions and int64 targets");
    }
    arguments_.rows = input_.dims == 1 ? 1 : input_.sizes[0];
    arguments_.classes = input_.sizes[input_.dims - 1];
    arguments_.several_targets = parameters.empty();
    arguments_.input = describe(input_);
    if (arguments_.several_targets) {
      check_sizes(target_, input_.dims, input_.sizes);
      arguments_.labels = describe(target_);
    } else {
      arguments_.p = static_cast<int>(parameters.at(0));
      arguments_.margin = parameters.at(1);
      arguments_.labels = {target_.data, target_.dtype, only_stride(target_, arguments_.rows), 0};
    }
    if (operands.weight) {
      const View view(*operands.weight);
      arguments_.weight = {view.data, view.dtype, 0, only_stride(view, arguments_.classes)};
    }
    if (upstream) {
      const View view(*upstream);
      arguments_.upstream = {view.data, view.dtype, only_stride(view, arguments_.rows), 0};
    }
    // Of no rows, the mean is 0.
    if (reduction == kMean) divisor_ = static_cast<double>(std::max<int64_t>(arguments_.rows, 1));
  }

  const View& operand(int k) const { return k == 0 ? input_ : target_; }
  Layout gradient_layout(int) const { return Layout(input_, input_.dims, input_.sizes); }
  void write_gradient(int k, const View& gradient) {
    if (k > 0) throw std::runtime_error("fused_losses: there is no such derivative");
    arguments_.gradient = describe(gradient);
  }
  Layout loss_layout() const { return Layout(input_.dims - 1, input_.sizes); }
  void write_losses(const View& losses) { arguments_.losses = {losses.data, losses.dtype}; }

 protected:
  // Rows and classes.
  RowTensor describe(const View& view) const {
    return {view.data, view.dtype, view.dims == 1 ? 0 : view.strides[0], view.strides[view.dims - 1]};
  }

  ClassMarginArguments arguments_;
  double divisor_ = 1;

 private:
  // Of a tensor of n elements, in one dimension or, where n is 1, in none.
  static int64_t only_stride(const View& view, int64_t n) {
    if (view.count != n || view.dims > 1) throw std::runtime_error("fused_losses: expected as many as rows or classes");
    return view.dims ? view.strides[0] : 0;
  }

  View input_, target_;
};

}  // namespace fused_losses
