// The operators of the pointwise losses on a GPU, from tensors to the engine. Their schemas are in fused_losses/ops.py.
#include "../formulas/losses.h"
#include "../pointwise_call.h"
#include "pointwise_engine.h"
#include "tensors.h"

namespace fused_losses {
namespace {

template <class Formula>
class Call : public PointwiseCall<Formula>, public OnGpu<Call<Formula>> {
 public:
  Call(const Operands& operands, const std::vector<double>& parameters, std::optional<double> ignore_index,
       const OptionalTensor& normalizer, int64_t reduction, const OptionalTensor& upstream)
      : PointwiseCall<Formula>(operands, parameters, ignore_index, normalizer, upstream),
        OnGpu<Call<Formula>>(operands.input) {
    this->scaling_.divisor = this->plain_divisor(reduction);
    this->scaling_.divisor_on_device = this->normalizer(reduction);
    if (this->scaling_.divisor_on_device) return;
    const bool by_weights = this->divides_by_weights(reduction);
    if (!by_weights && !this->divides_by_kept(reduction)) return;
    divisor_ = empty_on(this->queue().device, Layout(0, nullptr), ScalarType::Double);
    Reduced sum{divisor_->data_ptr(), ScalarType::Double};
    const Scratch scratch(this->queue(), sum);
    pointwise_divisor(this->arguments_, by_weights, by_weights ? this->copies() : 1, sum, this->queue());
    this->scaling_.divisor_on_device = static_cast<const double*>(divisor_->data_ptr());
  }

  void run(const Scaling& scaling, const Reduced& reduced, bool) const {
    pointwise<Formula>(this->arguments_, scaling, reduced, this->queue());
  }

 private:
  OptionalTensor divisor_;
};

}  // namespace

FUSED_LOSSES_GPU_OPERATORS(m) {
#define FUSED_LOSSES_IMPLEMENT(name, Formula) \
  LossOperators<#name, Call<Formula>, const std::vector<double>&, std::optional<double>, OptionalTensor>::implement(m);
  FUSED_LOSSES_POINTWISE(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
