// The operator scale_ on a GPU, from tensors to the engine. Its schema is in fused_losses/ops.py.
#include "scale.h"
#include "tensors.h"

namespace fused_losses {
namespace {

void scale_inplace(const Tensor& gradient, const Tensor& factor) {
  check_devices(gradient, factor);
  const View view(gradient), by(factor);
  if (!is_dense(view)) throw std::runtime_error("fused_losses: scale_ needs a dense tensor");
  const OnDevice device(gradient);
  scale({view.data, view.dtype}, view.count, {by.data, by.dtype}, device.queue());
}

}  // namespace

FUSED_LOSSES_GPU_OPERATORS(m) { m.impl("scale_", TORCH_BOX(&scale_inplace)); }

}  // namespace fused_losses
