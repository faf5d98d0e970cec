// Distances between two vectors x and y, and their derivatives.
//
// A distance is a struct with
//   kNumbers      how many numbers a pass over the vectors yields
//   kAdds         whether the numbers are sums; if not, start() and merge() say what they are
//   kTakesPowers  whether an element takes a general power, which is about a hundred instructions
//   add(x, y, numbers)             takes one element of either vector into account
//   value(numbers)                 the distance
//   slope(numbers, value, factor)  what the derivatives, times factor, are made of
//   derivatives(slope, x, y)       the derivatives with respect to one element of x and of y
// Differences are x - y + eps, as in torch's pairwise_distance. The derivative of a norm is 0 where the norm is 0.
#pragma once

#include "math.h"

namespace fused_losses {

template <class V>
struct Pair {
  V x, y;
};

// What the derivatives of a distance are made of: up to three numbers of type R, which each distance uses in its way.
template <class R>
struct Slope {
  R a, b, c;
};

FUSED_LOSSES_WORD T sign_of(T x) {
  return select(x > splat<T>(0), splat<T>(1), select(x < splat<T>(0), splat<T>(-1), splat<T>(0)));
}

struct SumDistance {
  static constexpr bool kAdds = true;
  static constexpr bool kTakesPowers = false;
};

// (sum d^2)^(1/2)
struct EuclideanDistance : SumDistance {
  static constexpr int kNumbers = 1;
  double eps;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE void add(V x, V y, V* numbers) const {
    const V d = (x - y) + splat<V>(eps);
    numbers[0] = multiply_add(d, d, numbers[0]);
  }
  template <class R>
  FUSED_LOSSES_HOST_DEVICE R value(const R* numbers) const {
    return std::sqrt(numbers[0]);
  }
  template <class R>
  FUSED_LOSSES_HOST_DEVICE Slope<R> slope(const R*, R value, R factor) const {
    return {value == 0 ? 0 : factor / value, 0, 0};
  }
  template <class R, class V>
  FUSED_LOSSES_HOST_DEVICE Pair<V> derivatives(const Slope<R>& slope, V x, V y) const {
    const V x_derivative = splat<V>(slope.a) * ((x - y) + splat<V>(eps));
    return {x_derivative, -x_derivative};
  }
};

// sum |d|: for p = 1, and for any other finite p but 0 where vectors have a single element, whose |d|^p may be out of
// range.
struct ManhattanDistance : SumDistance {
  static constexpr int kNumbers = 1;
  double eps;
  double p;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE void add(V x, V y, V* numbers) const {
    numbers[0] += abs((x - y) + splat<V>(eps));
  }
  template <class R>
  FUSED_LOSSES_HOST_DEVICE R value(const R* numbers) const {
    return numbers[0];
  }
  // For p other than 1, torch divides |d| by the distance: NaN where both are infinite.
  template <class R>
  FUSED_LOSSES_HOST_DEVICE Slope<R> slope(const R*, R value, R factor) const {
    return {p == 1 ? factor : factor + 0 * value, 0, 0};
  }
  template <class R, class V>
  FUSED_LOSSES_HOST_DEVICE Pair<V> derivatives(const Slope<R>& slope, V x, V y) const {
    const V x_derivative = splat<V>(slope.a) * sign_of((x - y) + splat<V>(eps));
    return {x_derivative, -x_derivative};
  }
};

// (sum |d|^p)^(1/p) for any finite p but 0.
struct PowerDistance : SumDistance {
  static constexpr int kNumbers = 1;
  static constexpr bool kTakesPowers = true;
  double eps;
  double p;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE void add(V x, V y, V* numbers) const {
    numbers[0] += pow(abs((x - y) + splat<V>(eps)), p);
  }
  template <class R>
  FUSED_LOSSES_HOST_DEVICE R value(const R* numbers) const {
    return pow(numbers[0], 1 / p);
  }
  template <class R>
  FUSED_LOSSES_HOST_DEVICE Slope<R> slope(const R*, R value, R factor) const {
    return value == 0 ? Slope<R>{0, 1, 0} : Slope<R>{factor, 1 / value, 0};
  }
  // By (|d| / value)^(p - 1): the power of the quotient stays in range where that of |d| or of the value might not.
  template <class R, class V>
  FUSED_LOSSES_HOST_DEVICE Pair<V> derivatives(const Slope<R>& slope, V x, V y) const {
    const V d = (x - y) + splat<V>(eps);
    const V zero = splat<V>(0);
    const V size = splat<V>(slope.a) * pow(abs(d) * splat<V>(slope.b), p - 1);
    // Where d is 0, its power may be infinite, so the derivative is 0 by selection; but NaN where the distance is NaN.
    const V x_derivative = select(d == zero, splat<V>(0 * slope.b), sign_of(d) * size);
    return {x_derivative, -x_derivative};
  }
};

// The largest |d| (p = infinity) or the smallest (p = -infinity). Elements that tie share the derivative.
struct ExtremeDistance {
  static constexpr int kNumbers = 2;  // the extreme, and how many elements have it
  static constexpr bool kAdds = false;
  static constexpr bool kTakesPowers = false;
  double eps;
  bool smallest;

  FUSED_LOSSES_HOST_DEVICE double first() const { return smallest ? INFINITY : -1; }

  template <class V>
  FUSED_LOSSES_HOST_DEVICE void start(V* numbers) const {
    numbers[0] = splat<V>(first());
    numbers[1] = splat<V>(0);
  }
  template <class V>
  FUSED_LOSSES_HOST_DEVICE void take(V size, V count, V* numbers) const {
    // NaN replaces any extreme, and nothing replaces NaN.
    const auto beyond = smallest ? size < numbers[0] : size > numbers[0];
    const auto further = beyond | (size != size);
    numbers[1] = select(further, count, numbers[1] + select(size == numbers[0], count, splat<V>(0)));
    numbers[0] = select(further, size, numbers[0]);
  }
  template <class V>
  FUSED_LOSSES_HOST_DEVICE void add(V x, V y, V* numbers) const {
    take(abs((x - y) + splat<V>(eps)), splat<V>(1), numbers);
  }
  template <class R>
  FUSED_LOSSES_HOST_DEVICE void merge(const R* other, R* numbers) const {
    if (other[1] > 0) take(other[0], other[1], numbers);
  }
  template <class R>
  FUSED_LOSSES_HOST_DEVICE R value(const R* numbers) const {
    return numbers[0];
  }
  template <class R>
  FUSED_LOSSES_HOST_DEVICE Slope<R> slope(const R* numbers, R value, R factor) const {
    return {factor / numbers[1], value, 0};
  }
  template <class R, class V>
  FUSED_LOSSES_HOST_DEVICE Pair<V> derivatives(const Slope<R>& slope, V x, V y) const {
    const V d = (x - y) + splat<V>(eps);
    const V x_derivative = select(abs(d) == splat<V>(slope.b), splat<V>(slope.a) * sign_of(d), splat<V>(0));
    return {x_derivative, -x_derivative};
  }
};

// 1 - x y / (|x| |y|). As in torch's cosine_similarity, norms are at least 1e-8, and derivatives are computed as if
// they had not been raised to it.
struct CosineDistance : SumDistance {
  static constexpr int kNumbers = 3;  // x y, x x, y y

  template <class V>
  FUSED_LOSSES_HOST_DEVICE void add(V x, V y, V* numbers) const {
    // All three by multiply_add, so that for equal vectors the three sums are the same bits, and their distances tie.
    numbers[0] = multiply_add(x, y, numbers[0]);
    numbers[1] = multiply_add(x, x, numbers[1]);
    numbers[2] = multiply_add(y, y, numbers[2]);
  }
  template <class R>
  FUSED_LOSSES_HOST_DEVICE static R norm(R square) {
    const R root = std::sqrt(square), least = static_cast<R>(1e-8);
    return root < least ? least : root;
  }
  template <class R>
  FUSED_LOSSES_HOST_DEVICE R value(const R* numbers) const {
    return 1 - numbers[0] / (norm(numbers[1]) * norm(numbers[2]));
  }
  template <class R>
  FUSED_LOSSES_HOST_DEVICE Slope<R> slope(const R* numbers, R, R factor) const {
    const R x_norm = norm(numbers[1]), y_norm = norm(numbers[2]);
    const R cosine = numbers[0] / (x_norm * y_norm);
    const auto along = [&](R norm, R square) {
      return square == 0 ? R(0) : factor * cosine / (norm * std::sqrt(square));
    };
    return {-factor / (x_norm * y_norm), along(x_norm, numbers[1]), along(y_norm, numbers[2])};
  }
  template <class R, class V>
  FUSED_LOSSES_HOST_DEVICE Pair<V> derivatives(const Slope<R>& slope, V x, V y) const {
    const V a = splat<V>(slope.a);
    return {a * y + splat<V>(slope.b) * x, a * x + splat<V>(slope.c) * y};
  }
};

}  // namespace fused_losses
