// A call of the operator scale_, from tensors to views: a dense gradient, and the one number that multiplies it.
#pragma once

#include "tensor.h"

namespace fused_losses {

struct ScaleCall {
  View gradient, factor;

  ScaleCall(const Tensor& gradient_, const Tensor& factor_)
      : gradient((check_defined(gradient_, "gradient"), gradient_), "gradient"),
        factor((check_device(factor_, "factor", gradient_, "gradient"), factor_), "factor") {
    check_floating(gradient);
    check_floating(factor);
    if (factor.count != 1) refuse(factor, "be one number");
    if (gradient.count > 0 && !is_dense(gradient)) refuse(gradient, "be dense in memory");
    check_disjoint(factor, gradient);
  }
};

}  // namespace fused_losses
