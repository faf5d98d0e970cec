// The engine of scale_, which multiplies a gradient in place: one that overwrote its input cannot be computed again.
#pragma once

#include "engine.h"

namespace fused_losses {

// Multiplies the `count` elements of `gradient` by the one of `factor`, which the device alone knows. If it is 1, the
// usual upstream gradient, the memory is not touched. A 0 stays 0, as in cpu/scale_ops.cpp.
void scale(const Result& gradient, int64_t count, const Result& factor, const Queue& queue);

}  // namespace fused_losses
