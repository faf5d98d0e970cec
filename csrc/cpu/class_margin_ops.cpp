// The operators of the class margin losses, from tensors to the engine. Their schemas are in fused_losses/ops.py.
#include "../class_margin_call.h"
#include "../formulas/class_margin.h"
#include "class_margin_engine.h"
#include "tensors.h"

namespace fused_losses {
namespace {

class Call : public ClassMarginCall, public OnCpu<Call> {
 public:
  using ClassMarginCall::ClassMarginCall;

  double divisor() const { return divisor_; }

  double run(double scale, bool) {
    arguments_.scale = scale;
    return class_margin(arguments_);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, m) {
#define FUSED_LOSSES_IMPLEMENT(name) LossOperators<Call, const std::vector<double>&>::implement(m, #name);
  FUSED_LOSSES_CLASS_MARGIN(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
