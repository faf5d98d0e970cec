// Losses that are 0 beyond a margin. At the margin itself, the derivative is 0.
#pragma once

#include "pointwise.h"

namespace fused_losses {

// max(0, z), and NaN of NaN.
FUSED_LOSSES_WORD T positive_part(T z) { return select(z <= splat<T>(0), splat<T>(0), z); }

// x where the target is 1, max(0, margin - x) where it is -1, and both for any other.
struct HingeEmbedding : PointwiseFormula {
  static constexpr int kParameters = 1;
  static constexpr int kDerivatives = 1;

  FUSED_LOSSES_HOST_DEVICE explicit HingeEmbedding(const double* parameters)
      : PointwiseFormula(parameters), margin_(parameters[0]) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 1> terms(V x, V t) const {
    const V zero = splat<V>(0), one = splat<V>(1);
    const V gap = splat<V>(margin_) - x;
    const auto similar = t != -one, dissimilar = t != one;
    const V value = select(similar, x, zero) + select(dissimilar, positive_part(gap), zero);
    return {value, {select(similar, one, zero) - select(dissimilar & (gap > zero), one, zero)}};
  }

 private:
  double margin_;
};

// max(0, margin - y (x1 - x2)) for y = 1 where x1 is to be ranked higher, -1 where x2 is.
struct MarginRanking : PointwiseFormula {
  static constexpr int kParameters = 1;
  static constexpr int kOperands = 3;
  static constexpr int kDerivatives = 3;

  FUSED_LOSSES_HOST_DEVICE explicit MarginRanking(const double* parameters)
      : PointwiseFormula(parameters), margin_(parameters[0]) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 3> terms(V x1, V x2, V y) const {
    const V zero = splat<V>(0);
    const V difference = x1 - x2;
    const V gap = splat<V>(margin_) - y * difference;
    const V active = select(gap > zero, splat<V>(1), zero);
    const V slope = y * active;
    // A product and no selection: where the difference is infinite or NaN, torch multiplies it by 0, too.
    return {positive_part(gap), {-slope, slope, -difference * active}};
  }

 private:
  double margin_;
};

// The losses of this file: the operator's name and its formula.
#define FUSED_LOSSES_MARGIN(X)            \
  X(hinge_embedding_loss, HingeEmbedding) \
  X(margin_ranking_loss, MarginRanking)

}  // namespace fused_losses
