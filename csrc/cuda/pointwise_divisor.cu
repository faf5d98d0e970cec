// What the mean of a pointwise loss divides by, where elements must be looked at for it.
#include "pointwise_engine.cuh"

namespace fused_losses {
namespace {

struct Divisor {
  Operand operand;
  Iteration iteration;
  bool sum_weights;
  double ignored, copies;
  Reduced sum;
};

__global__ void __launch_bounds__(kThreads) add_up(Divisor divisor) {
  double sum = 0;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t i = first; i < divisor.iteration.count; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const double one = load_element(divisor.operand, divisor.iteration, i, 0.0);
    sum += divisor.sum_weights ? one : one != divisor.ignored;
  }
  finish(sum, divisor.sum, divisor.copies);
}

}  // namespace

void pointwise_divisor(const PointwiseArguments& arguments, bool sum_weights, double copies, const Reduced& sum,
                       const Queue& queue) {
  const Operand& operand = sum_weights ? arguments.factors[0] : arguments.operands[1];
  const int64_t tiles = (arguments.iteration.count + kThreads - 1) / kThreads;
  launch(add_up, queue, blocks_for(queue, tiles, kThreads), kThreads,
         Divisor{operand, arguments.iteration, sum_weights, arguments.ignored, copies, sum});
}

}  // namespace fused_losses
