// Losses that want the class of a row ahead of the others by a margin. With y the row's class and j any other,
//   gap = margin - x_y + x_j,   value = gap^p and slope = d value / d gap where the gap is positive, 0 elsewhere.
// The derivative with respect to x_j is the slope; with respect to x_y, minus the sum of the others'. At 0 and at
// NaN both are 0. A row of several classes adds up over them, j being none of them.
#pragma once

#include "pointwise.h"

namespace fused_losses {

template <int p>
struct ClassMargin {
  static_assert(p == 1 || p == 2);
  double margin;

  // What all gaps of class y begin with; in this order, as torch does, so that ties are the same.
  template <class V>
  FUSED_LOSSES_HOST_DEVICE V offset(V x_y) const {
    return splat<V>(margin) - x_y;
  }

  template <class V>
  FUSED_LOSSES_HOST_DEVICE static Terms<V, 1> terms(V gap) {
    const V zero = splat<V>(0);
    const V excess = select(gap > zero, gap, zero);
    if constexpr (p == 1) return {excess, {select(gap > zero, splat<V>(1), zero)}};
    return {excess * excess, {excess + excess}};
  }
};

// The losses of this file: the operators' names.
#define FUSED_LOSSES_CLASS_MARGIN(X) \
  X(multi_margin_loss)               \
  X(multilabel_margin_loss)

}  // namespace fused_losses
