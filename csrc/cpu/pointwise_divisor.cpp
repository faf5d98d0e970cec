// What the mean of a pointwise loss divides by.
#include "pointwise_loops.h"

namespace fused_losses {

double pointwise_divisor(const PointwiseArguments& arguments, bool sum_weights) {
  const int64_t count = arguments.iteration.count;
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  const Operand& operand = sum_weights ? arguments.factors[0] : arguments.operands[1];
  std::vector<double> sums(blocks);
  const auto sum = [&](auto type) {
    using T = decltype(type);
    using V = Vector<T>;
    const T ignored = static_cast<T>(arguments.ignored);
    parallel_for(blocks, 2, [&](int64_t first, int64_t last) {
      alignas(64) T buffer[kChunk];
      for (int64_t b = first; b < last; ++b) {
        const int64_t end = (b + 1) * kBlock < count ? (b + 1) * kBlock : count;
        for (int64_t at = b * kBlock; at < end; at += kChunk) {
          const int64_t n = end - at < kChunk ? end - at : kChunk;
          const T* const elements = gather(operand, arguments.iteration, at, n, buffer);
          V total{};
          for_each_register<T>(n, [&](int64_t i, auto lanes) {
            const V one = load(elements + i, lanes, 0);
            const V term = sum_weights ? one : select(one == ignored, V{}, V{} + T(1));
            total += keep_lanes(term, lanes, 0);
          });
          sums[b] += sum_of_lanes(total);
        }
      }
    });
  };
  if (operand.dtype == ScalarType::Double) {
    sum(double{});
  } else {
    sum(float{});
  }
  return sum_of(sums);
}

}  // namespace fused_losses
