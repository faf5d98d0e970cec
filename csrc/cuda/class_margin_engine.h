// The class margin engines on a GPU: what their operators know of them.
#pragma once

#include "../class_margin_arguments.h"
#include "engine.h"

namespace fused_losses {

// One target in a row.
void multi_margin(const ClassMarginArguments& arguments, const Scaling& scaling, const Reduced& reduced,
                  const Queue& queue);

// A list of targets for each row. The gradient may overwrite the scores if a row of them fits_on_chip.
void multilabel_margin(const ClassMarginArguments& arguments, const Scaling& scaling, const Reduced& reduced,
                       const Queue& queue);

bool fits_on_chip(const ClassMarginArguments& arguments);

}  // namespace fused_losses
