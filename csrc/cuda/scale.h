// Multiplying a gradient that overwrote its logits, which cannot be computed again.
#pragma once

#include "engine.h"

namespace fused_losses {

// By a number on the device; 1, the usual upstream gradient, leaves the memory untouched.
void scale(const Result& gradient, int64_t count, const Result& factor, const Queue& queue);

}  // namespace fused_losses
