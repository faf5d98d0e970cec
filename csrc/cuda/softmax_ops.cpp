// The operators cross_entropy and nll_loss on a GPU, from tensors to the engines. Their schemas are in
// fused_losses/ops.py.
#include "softmax_engine.h"

#include "../formulas/cross_entropy.h"
#include "../softmax_call.h"
#include "tensors.h"

namespace fused_losses {
namespace {

// How many labels each block adds up for itself: 4 KiB of them, in less time than a launch takes; more, if they are a
// small part of the logits that it reads.
constexpr int64_t few_labels(int64_t classes) { return std::max<int64_t>(512, classes / 128); }

using Engine = void (*)(const SoftmaxArguments&, const Scaling&, LabelDivisor, const Reduced&, const Queue&);

template <Engine engine>
class Call : public SoftmaxCall<kSameEngine<engine, cross_entropy>>, public OnGpu<Call<engine>> {
 public:
  Call(const Operands& operands, int64_t ignore_index, double label_smoothing, const std::vector<double>& terms,
       const OptionalTensor& normalizer, const OptionalTensor& lse_gradient, int64_t reduction,
       const OptionalTensor& upstream)
      : SoftmaxCall<kSameEngine<engine, cross_entropy>>(operands, ignore_index, label_smoothing, terms, normalizer,
                                                        lse_gradient, reduction, upstream),
        OnGpu<Call<engine>>(operands.input) {}

  void run(Scaling scaling, const Reduced& reduced, bool forward) {
    SoftmaxArguments& arguments = this->arguments_;
    arguments.backward = !forward;
    this->merge_positions();
    LabelDivisor labels;
    OptionalTensor divisor;
    if (this->is_mean() && arguments.normalizer) {
      scaling.divisor_on_device = arguments.normalizer;
    } else if (this->is_mean()) {
      const int64_t positions = arguments.outer * arguments.inner;
      scaling.divisor = static_cast<double>(positions);
      labels.by_each_block = arguments.labels.data && positions <= few_labels(arguments.classes);
      if (arguments.labels.data && !labels.by_each_block) {
        divisor = empty_on(this->queue().device, Layout(0, nullptr), ScalarType::Double);
        Reduced sum{divisor->data_ptr(), ScalarType::Double};
        const Scratch scratch(this->queue(), sum);
        label_divisor(arguments, sum, this->queue());
        scaling.divisor_on_device = static_cast<const double*>(divisor->data_ptr());
      }
    }
    engine(arguments, scaling, labels, reduced, this->queue());
  }
};

}  // namespace

FUSED_LOSSES_GPU_OPERATORS(m) {
#define FUSED_LOSSES_IMPLEMENT(name, engine)                                                                           \
  LossOperators<#name, Call<engine>, int64_t, double, std::vector<double>, OptionalTensor, OptionalTensor>::implement( \
      m);
  FUSED_LOSSES_SOFTMAX(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
