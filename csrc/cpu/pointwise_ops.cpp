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
       int64_t reduction, const OptionalTensor& upstream)
      : PointwiseCall<Formula>(operands, parameters, ignore_index, upstream), divisor_(this->plain_divisor(reduction)) {
    if (this->divides_by_weights(reduction)) divisor_ = pointwise_divisor(this->arguments_, true) / this->copies();
    if (this->divides_by_kept(reduction)) divisor_ = pointwise_divisor(this->arguments_, false);
  }

  // Where the gradient overwrites the input, operands outside of the domain must be found before.
  void prepare() const {
    if (!Formula::kNeedsDomain || this->arguments_.derivatives[0].data != this->arguments_.operands[0].data) return;
    PointwiseArguments check = this->arguments_;
    check.values = {};
    for (Result& derivative : check.derivatives) derivative = {};
    pointwise<Formula>(check);
  }

  double divisor() const { return divisor_; }

  double run(double scale, bool forward) {
    this->arguments_.scale = scale;
    this->arguments_.wants_sum = forward && !this->arguments_.values.data;
    return pointwise<Formula>(this->arguments_);
  }

 private:
  double divisor_;
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
