// The operators of the class margin losses on a GPU, from tensors to the engines. Their schemas are in
// fused_losses/ops.py.
#include "class_margin_engine.h"

#include "../class_margin_call.h"
#include "../formulas/class_margin.h"
#include "tensors.h"

namespace fused_losses {
namespace {

template <int parameter_count>
class Call : public ClassMarginCall<parameter_count>, public OnGpu<Call<parameter_count>> {
 public:
  Call(const Operands& operands, const std::vector<double>& parameters, int64_t reduction,
       const OptionalTensor& upstream)
      : ClassMarginCall<parameter_count>(operands, parameters, reduction, upstream),
        OnGpu<Call<parameter_count>>(operands.input),
        input_(operands.input) {
    this->scaling_.divisor = this->divisor_;
  }

  void run(const Scaling& scaling, const Reduced& reduced, bool) {
    if (!this->arguments_.several_targets) return multi_margin(this->arguments_, scaling, reduced, this->queue());
    // Scores are read several times over: if they do not fit on the chip, the gradient must not overwrite them.
    if (this->arguments_.gradient.data == this->arguments_.input.data && !fits_on_chip(this->arguments_)) {
      scores_ = torch::stable::clone(input_);
      const View view(*scores_);
      this->arguments_.input = this->describe(view);
    }
    multilabel_margin(this->arguments_, scaling, reduced, this->queue());
  }

 private:
  const Tensor& input_;
  OptionalTensor scores_;
};

}  // namespace

FUSED_LOSSES_GPU_OPERATORS(m) {
#define FUSED_LOSSES_IMPLEMENT(name, parameter_count) \
  LossOperators<#name, Call<parameter_count>, const std::vector<double>&>::implement(m);
  FUSED_LOSSES_CLASS_MARGIN(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
