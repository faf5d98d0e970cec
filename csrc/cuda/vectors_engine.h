// The engine of losses of vectors on a GPU: what its operators know of it.
#pragma once

#include "../vectors_arguments.h"
#include "engine.h"

namespace fused_losses {

#define FUSED_LOSSES_ENGINE(name) \
  void name(const VectorsArguments& arguments, const Scaling& scaling, const Reduced& reduced, const Queue& queue);

// Parameters: margin, p, eps, swap, and, if it is there, whether the distance is the cosine's.
FUSED_LOSSES_ENGINE(triplet_margin)

// Parameters: margin.
FUSED_LOSSES_ENGINE(cosine_embedding)

// Triplets by distances that take a power of every element.
FUSED_LOSSES_ENGINE(triplet_margin_by_powers)

#undef FUSED_LOSSES_ENGINE

}  // namespace fused_losses
