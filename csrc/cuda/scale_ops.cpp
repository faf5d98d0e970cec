// The operator scale_ on a GPU, from tensors to the engine. Its schema is in fused_losses/ops.py.
#include "scale.h"

#include "../scale_call.h"
#include "tensors.h"

namespace fused_losses {
namespace {

void scale_inplace(const Tensor& gradient, const Tensor& factor) {
  const ScaleCall call = named("scale_", [&] { return ScaleCall(gradient, factor); });
  const OnDevice device(gradient);
  scale({call.gradient.data, call.gradient.dtype}, call.gradient.count, {call.factor.data, call.factor.dtype},
        device.queue());
}

}  // namespace

FUSED_LOSSES_GPU_OPERATORS(m) { m.impl("scale_", TORCH_BOX(&scale_inplace)); }

}  // namespace fused_losses
