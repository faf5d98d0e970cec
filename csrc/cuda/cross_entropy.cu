// Cross-entropy: whose kernels are in softmax_*.cu.
#include "labels.cuh"

namespace fused_losses {

template <class S, bool kSoft>
void run_softmax(SoftmaxKernel kernel, const Queue& queue);

void cross_entropy(const CrossEntropyArguments& arguments, const Scaling& scaling, LabelDivisor divisor,
                   const Reduced& reduced, const Queue& queue) {
  const SoftmaxKernel kernel{arguments, scaling, divisor, reduced};
  const bool soft = arguments.probabilities.data || arguments.label_smoothing != 0;
  with_storage(arguments.input.dtype, [&](auto storage) {
    using S = decltype(storage);
    if (soft) {
      run_softmax<S, true>(kernel, queue);
    } else {
      run_softmax<S, false>(kernel, queue);
    }
  });
}

}  // namespace fused_losses
