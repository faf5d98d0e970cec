// The class margin engine on the CPU: what its operators (class_margin_ops.cpp) know of it.
#pragma once

#include "../class_margin_arguments.h"

namespace fused_losses {

// Writes the results that the arguments ask for, and returns the sum of the rows' losses. Throws std::runtime_error for
// a label out of range before it writes anything, since `gradient` may be the input's memory.
double class_margin(const ClassMarginArguments& arguments);

}  // namespace fused_losses
