// What the mean of a pointwise loss divides by, where elements must be looked at for it.
#include "pointwise_engine.h"
#include "reduce.cuh"
#include "runs.cuh"

namespace fused_losses {
namespace {

struct Divisor {
  RunIteration iteration;
  RunOperand operand;
  bool sum_weights;
  double ignored, copies;
  Reduced sum;
};

// An operand of float64 is taken element by element.
__global__ void __launch_bounds__(kThreads) add_up(const __grid_constant__ Divisor divisor) {
  const RunOperand& operand = divisor.operand;
  const int64_t count = divisor.iteration.of.count, step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t runs = operand.dtype == ScalarType::Double ? 0 : count / kRun;
  double sum = 0;
  const auto add = [&](double one) { sum += divisor.sum_weights ? one : one != divisor.ignored; };
  for (int64_t r = thread; r < runs; r += step) {
    const RunPlace<1> place(r * kRun, [&](int) -> const RunOperand& { return operand; }, divisor.iteration);
    float elements[kRun];
    unpack(load_run(operand, divisor.iteration, place, 0), operand.dtype, elements);
    unrolled<kRun>([&](int j) { add(elements[j]); });
  }
  for (int64_t i = runs * kRun + thread; i < count; i += step) {
    add(load_as<double>(operand.data, operand.dtype, offset_of(operand, divisor.iteration, i)));
  }
  finish(sum, divisor.sum, divisor.copies);
}

}  // namespace

void pointwise_divisor(const PointwiseArguments& arguments, bool sum_weights, double copies, const Reduced& sum,
                       const Queue& queue) {
  const Operand& operand = sum_weights ? arguments.factors[0] : arguments.operands[1];
  // Along a dimension that it is broadcast over, an operand is read once.
  Iteration iteration;
  Operand own = operand;
  double visits = 1;
  for (int d = 0; d < arguments.iteration.dims; ++d) {
    const int64_t size = arguments.iteration.sizes[d];
    if (!operand.contiguous && operand.strides[d] == 0) {
      visits *= static_cast<double>(size);
      continue;
    }
    own.strides[iteration.dims] = operand.strides[d];
    iteration.sizes[iteration.dims++] = size;
    iteration.count *= size;
  }
  // As elements are compared with it: in float32, unless they are float64.
  const double ignored =
      operand.dtype == ScalarType::Double ? arguments.ignored : static_cast<float>(arguments.ignored);
  RunIteration of(iteration);
  const RunOperand read(own, of);
  const int64_t tiles = (iteration.count / kRun + kThreads - 1) / kThreads;
  launch(add_up, queue, static_cast<int>(std::clamp<int64_t>(tiles, 1, kPointwiseBlocks)), kThreads,
         Divisor{of, read, sum_weights, ignored, copies / visits, sum});
}

}  // namespace fused_losses
