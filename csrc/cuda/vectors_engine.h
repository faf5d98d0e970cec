// The engine for losses of vectors on a GPU: what its operators know of it.
#pragma once

#include "../vectors_arguments.h"
#include "engine.h"

namespace fused_losses {

#define FUSED_LOSSES_ENGINE(name) \
  void name(const VectorsArguments& arguments, const Scaling& scaling, const Reduced& reduced, const Queue& queue);

// Parameters: margin, p, eps, swap and, as an optional fifth, whether the distance is that of the cosine.
FUSED_LOSSES_ENGINE(triplet_margin)

// One parameter: margin.
FUSED_LOSSES_ENGINE(cosine_embedding)

// The part of triplet_margin whose distance takes a power of every element, with the same parameters.
FUSED_LOSSES_ENGINE(triplet_margin_by_powers)

#undef FUSED_LOSSES_ENGINE

}  // namespace fused_losses
