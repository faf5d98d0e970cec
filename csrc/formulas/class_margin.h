// Losses that ask for the score of a row's target to be ahead of those of other classes by a margin. With y the target
// and j any other class,
//   gap = margin - x_y + x_j,   value = gap^p and slope = d value / d gap where the gap is positive, 0 elsewhere.
// The loss is the sum of the values, divided by C; its derivative with respect to x_j is the slope, and with respect to
// x_y minus the sum of all slopes, divided by C, too. The slope of a gap of 0 or NaN is 0. A row of several targets
// adds up over them; j is then a class that is none of them.
#pragma once

#include "pointwise.h"

namespace fused_losses {

template <int p>
struct ClassMargin {
  static_assert(p == 1 || p == 2);
  double margin;

  // margin - x_y, with which all gaps of target y begin. torch subtracts in this order, too, so a gap that is 0 for
  // torch is 0 here.
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

  // The slope of a positive gap times a factor.
  template <class V>
  FUSED_LOSSES_HOST_DEVICE static V scaled(V slope, V factor) {
    return p == 1 ? factor : slope * factor;
  }
};

// The losses of this file: the operators' names, and how many parameters they take.
#define FUSED_LOSSES_CLASS_MARGIN(X) \
  X(multi_margin_loss, 2)            \
  X(multilabel_margin_loss, 0)

}  // namespace fused_losses
