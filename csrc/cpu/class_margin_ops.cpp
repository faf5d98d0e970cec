// The operators of the class margin losses, from tensors to the engine. Their schemas are in fused_losses/ops.py.
#include "../class_margin_call.h"
#include "../formulas/class_margin.h"
#include "class_margin_engine.h"
#include "tensors.h"

namespace fused_losses {
namespace {

template <int parameter_count>
class Call : public ClassMarginCall<parameter_count>, public OnCpu<Call<parameter_count>> {
 public:
  using ClassMarginCall<parameter_count>::ClassMarginCall;

  double divisor() const { return this->divisor_; }

  double run(double scale, bool) {
    this->arguments_.scale = scale;
    return class_margin(this->arguments_);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, m) {
#define FUSED_LOSSES_IMPLEMENT(name, parameter_count) \
  LossOperators<#name, Call<parameter_count>, const std::vector<double>&>::implement(m);
  FUSED_LOSSES_CLASS_MARGIN(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
