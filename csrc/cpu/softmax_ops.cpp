// The operators cross_entropy and nll_loss, from tensors to their engines. Their schemas are in fused_losses/ops.py.
#include "../formulas/cross_entropy.h"
#include "../softmax_call.h"
#include "softmax_engine.h"
#include "tensors.h"

namespace fused_losses {
namespace {

template <double (*engine)(const SoftmaxArguments&)>
class Call : public SoftmaxCall<kSameEngine<engine, cross_entropy>>, public OnCpu<Call<engine>> {
 public:
  using SoftmaxCall<kSameEngine<engine, cross_entropy>>::SoftmaxCall;

  void prepare() {
    this->merge_positions();
    const double divisor = label_divisor(this->arguments_);
    if (this->is_mean()) divisor_ = this->arguments_.normalizer ? *this->arguments_.normalizer : divisor;
  }
  double divisor() const { return divisor_; }

  double run(double scale, bool forward) {
    this->arguments_.scale = scale;
    this->arguments_.backward = !forward;
    return engine(this->arguments_);
  }

 private:
  double divisor_ = 1;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, m) {
#define FUSED_LOSSES_IMPLEMENT(name, engine)                                                                           \
  LossOperators<#name, Call<engine>, int64_t, double, std::vector<double>, OptionalTensor, OptionalTensor>::implement( \
      m);
  FUSED_LOSSES_SOFTMAX(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
