// A call of a class margin operator, from tensors to the arguments of an engine. See loss_operators.h.
#pragma once

#include "class_margin_arguments.h"
#include "loss_operators.h"

namespace fused_losses {

// A loss without parameters is the one that takes lists of targets.
template <int parameter_count>
class ClassMarginCall {
 public:
  static constexpr bool kHasStatistics = false;
  static constexpr int64_t kMostReduction = kSum;

  ClassMarginCall(const Operands& operands, const std::vector<double>& parameters, int64_t reduction,
                  const OptionalTensor& upstream)
      : input_(operands.input, "input"), target_(operands.target, "target") {
    check_floating(input_);
    if (input_.dims < 1 || input_.dims > 2 || input_.sizes[input_.dims - 1] == 0) {
      refuse(input_, "have shape (N, C) or (C,), of one class or more");
    }
    if (target_.dtype != ScalarType::Long) refuse(target_, "be int64 class indices");
    check_absent(operands.extra, "extra");
    check_parameters(parameters, parameter_count);
    arguments_.rows = input_.dims == 1 ? 1 : input_.sizes[0];
    arguments_.classes = input_.sizes[input_.dims - 1];
    arguments_.several_targets = kSeveralTargets;
    arguments_.input = describe(input_);
    if constexpr (kSeveralTargets) {
      check_absent(operands.weight, "weight");
      check_sizes(target_, input_.dims, input_.sizes);
      arguments_.labels = describe(target_);
    } else {
      if (parameters[0] != 1 && parameters[0] != 2) {
        refuse("parameters", "begin with p, 1 or 2", "it is " + std::to_string(parameters[0]));
      }
      arguments_.p = static_cast<int>(parameters[0]);
      arguments_.margin = parameters[1];
      arguments_.labels = {target_.data, target_.dtype, only_stride(target_, arguments_.rows), 0};
    }
    if (operands.weight) {
      const View view(*operands.weight, "weight");
      check_floating(view);
      arguments_.weight = {view.data, view.dtype, 0, only_stride(view, arguments_.classes)};
    }
    if (upstream) {
      const View view(*upstream, "upstream");
      arguments_.upstream = {view.data, view.dtype, only_stride(view, arguments_.rows), 0};
    }
    // Without rows, the mean is 0.
    if (reduction == kMean) divisor_ = static_cast<double>(std::max<int64_t>(arguments_.rows, 1));
  }

  int64_t derivatives() const { return kInput; }
  const View& operand(int k) const { return k == 0 ? input_ : target_; }
  Layout gradient_layout(int) const { return Layout(input_, input_.dims, input_.sizes); }
  void write_gradient(int, const View& gradient) { arguments_.gradient = describe(gradient); }
  Layout loss_layout() const { return Layout(input_.dims - 1, input_.sizes); }
  void write_losses(const View& losses) { arguments_.losses = {losses.data, losses.dtype}; }

 protected:
  // A tensor of rows and classes.
  RowTensor describe(const View& view) const {
    return {view.data, view.dtype, view.dims == 1 ? 0 : view.strides[0], view.strides[view.dims - 1]};
  }

  ClassMarginArguments arguments_;
  double divisor_ = 1;

 private:
  static constexpr bool kSeveralTargets = parameter_count == 0;

  // The stride of a tensor of n elements in one dimension, or, if n is 1, in none.
  static int64_t only_stride(const View& view, int64_t n) {
    if (view.count != n || view.dims > 1) refuse(view, "have shape (" + std::to_string(n) + ",)");
    return view.dims ? view.strides[0] : 0;
  }

  View input_, target_;
};

}  // namespace fused_losses
