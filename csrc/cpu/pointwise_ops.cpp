// The operators of the pointwise family, from tensors to the engine. Their schemas are in fused_losses/ops.py.
#include "loss_operators.h"
#include "pointwise.h"

#include "../formulas/losses.h"

namespace fused_losses {
namespace {

template <class Formula>
class Call {
 public:
  static constexpr bool kHasStatistics = false;

  Call(const Operands& operands, const std::vector<double>& parameters, std::optional<double> ignore_index,
       int64_t reduction, const OptionalTensor& upstream)
      : operands_{View(operands.input), View(operands.target), view(operands.extra)},
        factors_{view(operands.weight), view(upstream)},
        loop_(*operands_[0],
              {&*operands_[0], &*operands_[1], pointer(operands_[2]), pointer(factors_[0]), pointer(factors_[1])}) {
    if (Formula::kOperands == 3 && !Formula::kOptionalThird) operand(2);
    arguments_.iteration = loop_.iteration();
    for (int k = 0; k < 3; ++k) {
      if (operands_[k]) arguments_.operands[k] = loop_.operand(*operands_[k]);
    }
    for (int k = 0; k < 2; ++k) {
      if (factors_[k]) arguments_.factors[k] = loop_.operand(*factors_[k]);
    }
    arguments_.has_ignored = ignore_index.has_value();
    arguments_.ignored = ignore_index.value_or(0);
    arguments_.parameters = parameters.data();
    const double count = static_cast<double>(arguments_.iteration.count);
    if (reduction == kBatchMean && operands_[0]->dims) divisor_ = static_cast<double>(operands_[0]->sizes[0]);
    if (reduction != kMean) return;
    if (Formula::kMeanOverWeight && factors_[0]) {
      // torch sums the weights themselves, also where they are broadcast over a larger target.
      divisor_ = pointwise_divisor(arguments_, true) * (static_cast<double>(factors_[0]->count) / count);
    } else {
      divisor_ = ignore_index ? pointwise_divisor(arguments_, false) : count;
    }
  }

  const View& operand(int k) const { return operands_[k].value(); }
  Layout gradient_layout(int) const { return loop_.layout(); }
  void write_gradient(int k, const View& gradient) {
    if (k >= Formula::kDerivatives) throw std::runtime_error("fused_losses: there is no such derivative");
    arguments_.derivatives[k] = {gradient.data, gradient.dtype};
  }
  Layout loss_layout() const { return loop_.layout(); }
  void write_losses(const View& losses) { arguments_.values = {losses.data, losses.dtype}; }

  void prepare() const {
    if (!Formula::kNeedsDomain || arguments_.derivatives[0].data != arguments_.operands[0].data) return;
    PointwiseArguments check = arguments_;
    check.values = {};
    for (Result& derivative : check.derivatives) derivative = {};
    pointwise<Formula>(check);
  }

  double divisor() const { return divisor_; }

  double run(double scale, bool forward) {
    arguments_.scale = scale;
    arguments_.wants_sum = forward && !arguments_.values.data;
    return pointwise<Formula>(arguments_);
  }

 private:
  static std::optional<View> view(const OptionalTensor& tensor) {
    return tensor ? std::optional<View>(*tensor) : std::nullopt;
  }
  static const View* pointer(const std::optional<View>& view) { return view ? &*view : nullptr; }

  std::optional<View> operands_[3];
  std::optional<View> factors_[2];  // weight, upstream
  Loop loop_;
  PointwiseArguments arguments_;
  double divisor_ = 1;
};

template <class Formula>
using PointwiseOperators = LossOperators<Call<Formula>, const std::vector<double>&, std::optional<double>>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, m) {
#define FUSED_LOSSES_IMPLEMENT(name, Formula) PointwiseOperators<Formula>::implement(m, #name);
  FUSED_LOSSES_POINTWISE(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
