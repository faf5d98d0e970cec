// The operator scale_, which multiplies a gradient in place: one that overwrote its input cannot be computed again.
#include "../scale_call.h"
#include "parallel.h"
#include "tensors.h"

namespace fused_losses {
namespace {

// `factor` has one element. If it is 1, the usual upstream gradient, the memory is not touched. A 0 stays 0 even if the
// factor is infinite or NaN: it may be the gradient of an ignored row, which torch does not multiply either.
void scale_inplace(const Tensor& gradient, const Tensor& factor) {
  const ScaleCall call = named("scale_", [&] { return ScaleCall(gradient, factor); });
  const double by = number(call.factor);
  if (by == 1) return;
  const View& view = call.gradient;
  with_storage(view.dtype, [&](auto storage) {
    using S = decltype(storage);
    using T = Compute<S>;
    S* const data = static_cast<S*>(view.data);
    // 64 KiB of float32 to a thread at the least: as a block of the pointwise engine.
    parallel_for(view.count, 16 * kChunk, [&](int64_t begin, int64_t end) {
      for_each_register<T>(end - begin, [&](int64_t i, auto count) {
        S* const at = data + begin + i;
        const auto values = load(at, count, 0);
        store(at, select(values == 0, values, values * static_cast<T>(by)), count);
      });
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, m) { m.impl("scale_", TORCH_BOX(&scale_inplace)); }

}  // namespace fused_losses
