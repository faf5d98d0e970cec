// What the mean of a pointwise loss divides by, where elements must be looked at for it.
#include "pointwise_loops.h"

namespace fused_losses {

double pointwise_divisor(const PointwiseArguments& arguments, bool sum_weights) {
  const Operand& operand = sum_weights ? arguments.factors[0] : arguments.operands[1];
  const auto sum = [&](auto type) {
    using T = decltype(type);
    using V = Vector<T>;
    const T ignored = static_cast<T>(arguments.ignored);
    return sum_over_blocks(arguments.iteration.count, kBlock, kBlocksPerThread, [&] {
      return [&](int64_t begin, int64_t end) {
        alignas(64) T buffer[kChunk];
        double total = 0;
        for (const Piece chunk : Chunks(begin, end)) {
          const T* const elements = gather(operand, arguments.iteration, chunk.begin, chunk.count, buffer);
          V lanes{};
          for_each_register<T>(chunk.count, [&](int64_t i, auto count) {
            const V one = load(elements + i, count, 0);
            const V term = sum_weights ? one : select(one == ignored, V{}, V{} + T(1));
            lanes += keep_lanes(term, count, 0);
          });
          total += sum_of_lanes(lanes);
        }
        return total;
      };
    });
  };
  return operand.dtype == ScalarType::Double ? sum(double{}) : sum(float{});
}

}  // namespace fused_losses
