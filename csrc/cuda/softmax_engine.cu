// The softmax engine on a GPU. cross_entropy() chooses by dtype what to run; run_softmax (softmax_engine.cuh), which
// softmax_*.cu compile for one dtype each, chooses the kernel.
#include "labels.cuh"

namespace fused_losses {

template <class S>
void run_softmax(const SoftmaxKernel& kernel, const Queue& queue);

void cross_entropy(const SoftmaxArguments& arguments, const Scaling& scaling, LabelDivisor divisor,
                   const Reduced& reduced, const Queue& queue) {
  with_storage(arguments.input.dtype,
               [&](auto storage) { run_softmax<decltype(storage)>({arguments, scaling, divisor, reduced}, queue); });
}

}  // namespace fused_losses
