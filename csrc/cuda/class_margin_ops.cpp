// The operators of the class margin losses on a GPU, from tensors to the engines. Their schemas are in
// fused_losses/ops.py.
#include "class_margin_engine.h"

#include "../class_margin_call.h"
#include "../formulas/class_margin.h"
#include "tensors.h"

namespace fused_losses {
namespace {

class Call : public ClassMarginCall, public OnGpu<Call> {
 public:
  Call(const Operands& operands, const std::vector<double>& parameters, int64_t reduction,
       const OptionalTensor& upstream)
      : ClassMarginCall(operands, parameters, reduction, upstream),
        OnGpu<Call>(operands.input),
        input_(operands.input) {
    scaling_.divisor = divisor_;
  }

  void run(const Scaling& scaling, const Reduced& reduced, bool) {
    if (!arguments_.several_targets) return multi_margin(arguments_, scaling, reduced, queue());
    // Scores are read several times over: if they do not fit on the chip, the gradient must not overwrite them.
    if (arguments_.gradient.data == arguments_.input.data && !fits_on_chip(arguments_)) {
      scores_ = torch::stable::clone(input_);
      const View view(*scores_);
      arguments_.input = describe(view);
    }
    multilabel_margin(arguments_, scaling, reduced, queue());
  }

 private:
  const Tensor& input_;
  OptionalTensor scores_;
};

}  // namespace

FUSED_LOSSES_GPU_OPERATORS(m) {
#define FUSED_LOSSES_IMPLEMENT(name) LossOperators<Call, const std::vector<double>&>::implement(m, #name);
  FUSED_LOSSES_CLASS_MARGIN(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
