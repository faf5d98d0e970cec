// The engine for losses of vectors on the CPU: what its operators (vectors_ops.cpp) know of it. Each function writes
// the results that the arguments ask for, and returns the sum of the vectors' losses.
#pragma once

#include "../vectors_arguments.h"

namespace fused_losses {

// Parameters: margin, p, eps, swap and, as an optional fifth, whether the distance is that of the cosine.
double triplet_margin(const VectorsArguments& arguments);

// One parameter: margin.
double cosine_embedding(const VectorsArguments& arguments);

}  // namespace fused_losses
