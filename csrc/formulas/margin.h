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
    const V similar = select(t != -one, x, zero);
    return {select(t != one, select(gap <= zero, similar, similar + gap), similar), {gap}};
  }

  // What is not active takes no part in the product, so that an infinite scale leaves it 0, as in torch.
  template <class V>
  FUSED_LOSSES_HOST_DEVICE static V scaled(int, V gap, V scale, V, V t) {
    const V zero = splat<V>(0), one = splat<V>(1);
    const V similar = select(t != -one, scale, zero);
    return select((t != one) & (gap > zero), similar - scale, similar);
  }

 private:
  double margin_;
};

// max(0, margin - y (x1 - x2)) for y = 1 where x1 is to be ranked higher, -1 where x2 is.
struct MarginRanking : PointwiseFormula {
  static constexpr int kParameters = 1;
  static constexpr int kOperands = 3;
  static constexpr int kDerivatives = 3;
  static constexpr int kPair = kInput | kTarget;

  FUSED_LOSSES_HOST_DEVICE explicit MarginRanking(const double* parameters)
      : PointwiseFormula(parameters), margin_(parameters[0]) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 3> terms(V x1, V x2, V y) const {
    const V difference = x1 - x2;
    const V gap = multiply_add(-y, difference, splat<V>(margin_));
    return {positive_part(gap), {-y, y, -difference}};
  }

  // A product, and no selection of it: an infinite or undefined difference times 0 is NaN, as in torch.
  template <class V>
  FUSED_LOSSES_HOST_DEVICE V scaled(int, V derivative, V scale, V x1, V x2, V y) const {
    const V zero = splat<V>(0);
    return derivative * select(multiply_add(-y, x1 - x2, splat<V>(margin_)) > zero, scale, zero);
  }

 private:
  double margin_;
};

// The losses of this file: the operator's name and its formula.
#define FUSED_LOSSES_MARGIN(X)            \
  X(hinge_embedding_loss, HingeEmbedding) \
  X(margin_ranking_loss, MarginRanking)

}  // namespace fused_losses
