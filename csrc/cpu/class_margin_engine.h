// The class margin engine on the CPU.
#pragma once

#include "../class_margin_arguments.h"

namespace fused_losses {

// Returns the sum of the rows' losses. Throws std::runtime_error for a label out of range, before anything is
// written: `gradient` may be the input's memory.
double class_margin(const ClassMarginArguments& arguments);

}  // namespace fused_losses
