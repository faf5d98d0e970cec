// A call of a pointwise operator, from tensors to the arguments of an engine. See loss_operators.h.
#pragma once

#include "loss_operators.h"
#include "pointwise_arguments.h"

namespace fused_losses {

template <class Formula>
class PointwiseCall {
 public:
  static constexpr bool kHasStatistics = false;
  static constexpr int64_t kMostReduction = kBatchMean;

  PointwiseCall(const Operands& operands, const std::vector<double>& parameters, std::optional<double> ignore_index,
                const OptionalTensor& normalizer, const OptionalTensor& upstream)
      : operands_{view(operands.input, "input"), view(operands.target, "target"), third(operands.extra)},
        factors_{view(operands.weight, "weight"), view(upstream, "upstream")},
        normalizer_(normalizer_of(normalizer)),
        order_(*operands_[0], {&*operands_[0], &*operands_[1], pointer(operands_[2])},
               {pointer(factors_[0]), pointer(factors_[1])}) {
    check_parameters(parameters, Formula::kParameters);
    if (const char* const expected = Formula::expected(parameters.data())) {
      refuse("parameters", expected, "the first is " + std::to_string(parameters[0]));
    }
    if (ignore_index && !Formula::kIgnores) refuse("ignore_index", "be None", "it is " + std::to_string(*ignore_index));
    if (factors_[1]) check_sizes(*factors_[1], order_.layout().dims, order_.layout().sizes);
    arguments_.iteration = order_.iteration();
    for (int k = 0; k < 3; ++k) {
      if (operands_[k]) arguments_.operands[k] = order_.operand(*operands_[k]);
    }
    for (int k = 0; k < 2; ++k) {
      if (factors_[k]) arguments_.factors[k] = order_.operand(*factors_[k]);
    }
    arguments_.has_ignored = ignore_index.has_value();
    arguments_.ignored = ignore_index.value_or(0);
    arguments_.parameters = parameters.data();
  }

  const View& operand(int k) const { return *operands_[k]; }
  int64_t derivatives() const { return (int64_t{1} << Formula::kDerivatives) - 1; }
  Layout gradient_layout(int) const { return order_.layout(); }
  void write_gradient(int k, const View& gradient) { arguments_.derivatives[k] = {gradient.data, gradient.dtype}; }
  Layout loss_layout() const { return order_.layout(); }
  void write_losses(const View& losses) { arguments_.values = {losses.data, losses.dtype}; }

 protected:
  double count() const { return static_cast<double>(arguments_.iteration.count); }

  // What a reduction divides by instead, on the operands' device; null if nothing takes the divisor's place.
  const double* normalizer(int64_t reduction) const { return reduction == kMean ? normalizer_ : nullptr; }

  // What a reduction divides by, unless it is a normalizer, the sum of the weights or the number of elements that are
  // not ignored.
  double plain_divisor(int64_t reduction) const {
    if (reduction == kBatchMean && operands_[0]->dims) return static_cast<double>(operands_[0]->sizes[0]);
    return reduction == kMean ? count() : 1;
  }
  // As in torch, the mean divides by the sum of the weights themselves, also where they are broadcast over a larger
  // target: a sum over all elements counts each weight `copies()` times.
  bool divides_by_weights(int64_t reduction) const {
    return reduction == kMean && Formula::kMeanOverWeight && factors_[0].has_value();
  }
  double copies() const { return count() / static_cast<double>(factors_[0]->count); }
  bool divides_by_kept(int64_t reduction) const {
    return reduction == kMean && arguments_.has_ignored && !divides_by_weights(reduction);
  }

  PointwiseArguments arguments_;

 private:
  static std::optional<View> view(const OptionalTensor& tensor, const char* name) {
    if (!tensor) return std::nullopt;
    const View view(*tensor, name);
    check_floating(view);
    return view;
  }
  static std::optional<View> third(const OptionalTensor& extra) {
    if (Formula::kOperands < 3) check_absent(extra, "extra");
    if (Formula::kOperands == 3 && !Formula::kOptionalThird && !extra) refuse("extra", "be a tensor", "it is None");
    return view(extra, "extra");
  }
  static const View* pointer(const std::optional<View>& view) { return view ? &*view : nullptr; }

  std::optional<View> operands_[3];
  std::optional<View> factors_[2];  // weight, upstream
  const double* normalizer_;
  BroadcastOrder order_;
};

}  // namespace fused_losses
