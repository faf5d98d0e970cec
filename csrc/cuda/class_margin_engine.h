// The class margin engines on a GPU: what their operators know of them. There are two, each with its kernel in one
// file.
#pragma once

#include "../class_margin_arguments.h"
#include "engine.h"

namespace fused_losses {

// One target for each row: class_margin_one_target.cu.
void multi_margin(const ClassMarginArguments& arguments, const Scaling& scaling, const Reduced& reduced,
                  const Queue& queue);

// A list of targets for each row: class_margin_several_targets.cu. The gradient may overwrite the scores only if
// fits_on_chip() holds.
void multilabel_margin(const ClassMarginArguments& arguments, const Scaling& scaling, const Reduced& reduced,
                       const Queue& queue);

// Whether a row of scores fits into shared memory.
bool fits_on_chip(const ClassMarginArguments& arguments);

}  // namespace fused_losses
