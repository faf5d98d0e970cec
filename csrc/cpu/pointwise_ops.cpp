// The operators of the pointwise losses, from tensors to the engine. Their schemas are in fused_losses/ops.py.
#include "pointwise_engine.h"

#include "../formulas/losses.h"
#include "../pointwise_call.h"
#include "tensors.h"

namespace fused_losses {
namespace {

template <class Formula>
class Call : public PointwiseCall<Formula>, public OnCpu<Call<Formula>> {
 public:
  Call(const Operands& operands, const std::vector<double>& parameters, std::optional<double> ignore_index,
       const OptionalTensor& normalizer, int64_t reduction, const OptionalTensor& upstream)
      : PointwiseCall<Formula>(operands, parameters, ignore_index, normalizer, upstream),
        divisor_(this->plain_divisor(reduction)) {
    if (const double* const instead = this->normalizer(reduction)) {
      divisor_ = *instead;
      return;
    }
    if (this->divides_by_weights(reduction)) divisor_ = pointwise_divisor(this->arguments_, true) / this->copies();
    if (this->divides_by_kept(reduction)) divisor_ = pointwise_divisor(this->arguments_, false);
  }

  // Where the gradient overwrites the input, elements that do not meet the formula's conditions must be found before.
  void prepare() const {
    if (!Formula::kConditions || this->arguments_.derivatives[0].data != this->arguments_.operands[0].data) return;
    PointwiseArguments check = this->arguments_;
    check.values = {};
    for (Result& derivative : check.derivatives) derivative = {};
    pointwise<Formula>(check);
  }

  double divisor() const { return divisor_; }

  double run(double scale, bool forward) {
    PointwiseArguments& arguments = this->arguments_;
    arguments.scale = scale;
    arguments.wants_sum = forward && !arguments.values.data;
    const bool wants_derivatives = std::any_of(arguments.derivatives, arguments.derivatives + 3,
                                               [](const Result& derivative) { return derivative.data; });
    if (arguments.values.data && wants_derivatives) {
      // No loop is compiled that stores both the losses and derivatives, which autograd never wants together.
      PointwiseArguments losses = arguments;
      for (Result& derivative : losses.derivatives) derivative = {};
      pointwise<Formula>(losses);
      arguments.values = {};
    }
    return pointwise<Formula>(arguments);
  }

 private:
  double divisor_;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, m) {
#define FUSED_LOSSES_IMPLEMENT(name, Formula) \
  LossOperators<#name, Call<Formula>, const std::vector<double>&, std::optional<double>, OptionalTensor>::implement(m);
  FUSED_LOSSES_POINTWISE(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
