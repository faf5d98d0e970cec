// The engine of losses of vectors on the CPU. Each function returns the sum of the vectors' losses.
#pragma once

#include "../vectors_arguments.h"

namespace fused_losses {

// Parameters: margin, p, eps, swap, and, if it is there, whether the distance is the cosine's.
double triplet_margin(const VectorsArguments& arguments);

// Parameters: margin.
double cosine_embedding(const VectorsArguments& arguments);

}  // namespace fused_losses
