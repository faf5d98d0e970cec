// The engine of losses of whole rows on the CPU. Each function returns the sum of the rows' losses.
#pragma once

#include "../vectors_arguments.h"

namespace fused_losses {

// Parameters: margin, p, eps, swap, and, if it is there, whether the distance is the cosine's.
double triplet_margin(const RowsArguments& arguments);

// Parameters: margin.
double cosine_embedding(const RowsArguments& arguments);

}  // namespace fused_losses
