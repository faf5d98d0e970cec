// Losses of two or three vectors: a pass over their elements yields a few numbers, these yield the loss and what its
// derivatives are made of, and a second pass over the elements makes the derivatives.
//
// A formula is a struct with
//   kOperands      how many vectors it reads, for all of which it has derivatives
//   kHasTarget     whether a number, the target, goes with the vectors
//   kNumbers       how many numbers the first pass yields
//   kAdds          whether the numbers are sums; if not, start() and merge() say what they are
//   kTakesPowers   whether an element takes a general power, which is about a hundred instructions
//   kSlopes        how many Slopes the derivatives are made of
//   add(x, numbers)                         takes one element of each vector, x[0], x[1], ..., into account
//   finish(numbers, target, scale, slopes)  the loss; fills slopes, unless null, for derivatives times scale
//   derivatives(slopes, x, results)         the derivatives with respect to one element of each vector
// Elements x may be registers (V); all else is a number of type R, float or double.
#pragma once

#include "distances.h"

namespace fused_losses {

// max(0, d(anchor, positive) - d(anchor, negative) + margin). With `swap`, d(positive, negative) takes the place of
// d(anchor, negative) where it is smaller; where the two are equal, each gets half of the derivative. Swap is bool, or
// std::false_type where it is known that the third distance is not wanted.
template <class Distance, class Swap = bool>
struct TripletMargin {
  static constexpr int kOperands = 3;
  static constexpr bool kHasTarget = false;
  static constexpr int kPair = Distance::kNumbers;
  static constexpr int kPairs = std::is_same_v<Swap, std::false_type> ? 2 : 3;
  static constexpr int kNumbers = kPairs * kPair;
  static constexpr bool kAdds = Distance::kAdds;
  static constexpr bool kTakesPowers = Distance::kTakesPowers;
  static constexpr int kSlopes = kPairs;

  Distance distance;
  double margin;
  Swap swap;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE void start(V* numbers) const {
    for (int pair = 0; pair < kPairs; ++pair) distance.start(numbers + pair * kPair);
  }
  template <class R>
  FUSED_LOSSES_HOST_DEVICE void merge(const R* other, R* numbers) const {
    for (int pair = 0; pair < kPairs; ++pair) distance.merge(other + pair * kPair, numbers + pair * kPair);
  }
  template <class V>
  FUSED_LOSSES_HOST_DEVICE void add(const V* x, V* numbers) const {
    distance.add(x[0], x[1], numbers);
    distance.add(x[0], x[2], numbers + kPair);
    if (swap) distance.add(x[1], x[2], numbers + 2 * kPair);
  }

  template <class R>
  FUSED_LOSSES_HOST_DEVICE R finish(const R* numbers, R, R scale, Slope<R>* slopes) const {
    const R to_positive = distance.value(numbers), from_anchor = distance.value(numbers + kPair);
    R from_positive = 0, to_negative = from_anchor, share = 1;
    if (swap) {
      from_positive = distance.value(numbers + 2 * kPair);
      share = from_anchor < from_positive ? R(1) : from_anchor > from_positive ? R(0) : R(0.5);
      if (!(from_anchor < from_positive)) to_negative = from_anchor == from_anchor ? from_positive : from_anchor;
    }
    const R gap = static_cast<R>(margin) + to_positive - to_negative;
    if (slopes) {
      const R factor = gap > 0 ? scale : 0;
      slopes[0] = distance.slope(numbers, to_positive, factor);
      slopes[1] = distance.slope(numbers + kPair, from_anchor, -factor * share);
      if (swap) slopes[2] = distance.slope(numbers + 2 * kPair, from_positive, -factor * (1 - share));
    }
    return gap <= 0 ? 0 : gap;
  }

  template <class R, class V>
  FUSED_LOSSES_HOST_DEVICE void derivatives(const Slope<R>* slopes, const V* x, V* results) const {
    const Pair<V> positive = distance.derivatives(slopes[0], x[0], x[1]);
    const Pair<V> negative = distance.derivatives(slopes[1], x[0], x[2]);
    results[0] = positive.x + negative.x;
    results[1] = positive.y;
    results[2] = negative.y;
    if (!swap) return;
    const Pair<V> between = distance.derivatives(slopes[2], x[1], x[2]);
    results[1] += between.x;
    results[2] += between.y;
  }
};

// Clang has deduced this by itself since version 17.
template <class Distance, class Swap>
TripletMargin(Distance, double, Swap) -> TripletMargin<Distance, Swap>;

// 1 - cos for a target of 1, max(0, cos - margin) for -1, 0 for any other. The squares of the norms have 1e-12
// added, as in torch.
struct CosineEmbedding {
  static constexpr int kOperands = 2;
  static constexpr bool kHasTarget = true;
  static constexpr int kNumbers = CosineDistance::kNumbers;
  static constexpr bool kAdds = true;
  static constexpr bool kTakesPowers = false;
  static constexpr int kSlopes = 1;

  double margin;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE void add(const V* x, V* numbers) const {
    CosineDistance().add(x[0], x[1], numbers);
  }

  template <class R>
  FUSED_LOSSES_HOST_DEVICE R finish(const R* numbers, R target, R scale, Slope<R>* slopes) const {
    constexpr double kEps = 1e-12f;  // torch's constant is a float32 for any input, too
    const R square_1 = numbers[1] + static_cast<R>(kEps), square_2 = numbers[2] + static_cast<R>(kEps);
    const R norms = std::sqrt(square_1 * square_2);
    const R cosine = numbers[0] / norms;
    const R gap = cosine - static_cast<R>(margin);
    const R sign = target == 1 ? -1 : target == -1 && gap > 0 ? 1 : 0;
    if (slopes) {
      const R factor = sign * scale;
      slopes[0] = {factor / norms, -factor * cosine / square_1, -factor * cosine / square_2};
    }
    if (target == 1) return 1 - cosine;
    return target == -1 && !(gap <= 0) ? gap : 0;
  }

  template <class R, class V>
  FUSED_LOSSES_HOST_DEVICE void derivatives(const Slope<R>* slopes, const V* x, V* results) const {
    const Pair<V> both = CosineDistance().derivatives(slopes[0], x[0], x[1]);
    results[0] = both.x;
    results[1] = both.y;
  }
};

// What registration walks: the operator's name, the engine's function, how many operands are vectors, which have
// derivatives, and how many parameters there are.
#define FUSED_LOSSES_VECTORS(X)                              \
  X(triplet_margin_loss, triplet_margin, 3, 4)               \
  X(triplet_margin_with_distance_loss, triplet_margin, 3, 5) \
  X(cosine_embedding_loss, cosine_embedding, 2, 1)

}  // namespace fused_losses
