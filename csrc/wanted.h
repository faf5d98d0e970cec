// Which operands, and what of a call, in the bits of a number.
#pragma once

#include <cstdint>

namespace fused_losses {

// The bits of an operator's `gradients`: the derivatives with respect to input, target and extra; and, going forward,
// the statistics of each row, which the backward can use, and the class of its largest logit.
enum Wanted : int64_t { kInput = 1, kTarget = 2, kExtra = 4, kStatistics = 8, kArgmax = 16 };

}  // namespace fused_losses
