// The softmax engine on a GPU. cross_entropy() chooses by dtype, soft targets and terms what to run; run_softmax
// (softmax_engine.cuh), which softmax_*.cu compile for one dtype each, chooses the kernel.
#include "labels.cuh"

namespace fused_losses {

template <class S, bool kSoft, bool kTerms>
void run_softmax(SoftmaxKernel kernel, const Queue& queue);

void cross_entropy(const SoftmaxArguments& arguments, const Scaling& scaling, LabelDivisor divisor,
                   const Reduced& reduced, const Queue& queue) {
  const SoftmaxKernel kernel{arguments, scaling, divisor, reduced};
  const bool soft = arguments.probabilities.data || arguments.label_smoothing != 0;
  const bool terms = arguments.terms.any() || arguments.lse_gradient.data || arguments.argmax;
  with_storage(arguments.input.dtype, [&](auto storage) {
    using S = decltype(storage);
    const auto run = soft ? (terms ? run_softmax<S, true, true> : run_softmax<S, true, false>)
                          : (terms ? run_softmax<S, false, true> : run_softmax<S, false, false>);
    run(kernel, queue);
  });
}

}  // namespace fused_losses
