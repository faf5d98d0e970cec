// The loops of the class margin engine over a chunk of one row, for one target or for several.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "blocks.h"

namespace fused_losses {

// Takes the place of a score that is not to count: its gap is -inf, so its value and slope are 0.
template <class T>
constexpr T kStruckOut = -std::numeric_limits<T>::infinity();

// Sums over classes: of the values, and of the slopes.
struct Totals {
  double value = 0;
  double slope = 0;

  void operator+=(const Totals& other) {
    value += other.value;
    slope += other.slope;
  }
};

// From slopes to the gradient: times the upstream gradient and the weight. Where there is no slope, the result is
// `zero`, the upstream gradient times 0, since 0 times an infinite weight would be NaN.
template <class V>
struct Scale {
  V slope;
  V zero;

  template <class W>
  Scale<W> as() const {
    return {splat<W>(slope), splat<W>(zero)};
  }
  V apply(V slopes) const { return select(slopes > splat<V>(0), slopes * slope, zero); }
};

// The target of a row that has one.
template <class T>
struct OneTarget {
  int64_t own;  // its class
  T offset;     // margin - its score, with which all gaps begin
  Scale<double> scale;
};

// A mask of lane k alone; of no lane, if there is no lane k.
template <class V>
auto lane_mask(int64_t k) {
  return lane_numbers<V>() == static_cast<typename Lane<V>::type>(k);
}

// The register of the gradient that holds the row's target, whose own element is known at the row's end only. The whole
// register is stored then, and not before: to store one element of a line that was streamed would bring the line back
// into the caches.
template <class T>
struct Held {
  Vector<T> elements;

  // The first class of the register that holds class `own`.
  static int64_t begin(int64_t own) { return own / kLanes<T> * kLanes<T>; }

  // Stores the register with `gradient` at class `own`, for a row of n classes whose gradient begins at `to`.
  template <class S>
  void store_with(double gradient, int64_t own, int64_t n, S* to, int64_t stride, bool streamed) const {
    const int64_t at = begin(own);
    const Vector<T> whole = select(lane_mask<Vector<T>>(own - at), splat<Vector<T>>(gradient), elements);
    if (stride == 1) {
      for_each_register<T>(std::min<int64_t>(kLanes<T>, n - at),
                           [&](int64_t, auto count) { store(to + at, whole, count, streamed); });
    } else {
      T apart[kLanes<T>];
      store(apart, whole);
      scatter_run(to + at * stride, stride, apart, std::min<int64_t>(kLanes<T>, n - at));
    }
  }
};

// Classes [first, first + n) of a row of one target: their totals. x and gradient point to class `first`, which is a
// multiple of the lanes of a register. Writes the gradient of all classes but those of the register of the target,
// which go to `held`.
template <class Formula, bool kGradient, class S>
Totals one_target(const S* x, int64_t first, int64_t n, const OneTarget<Compute<S>>& target, S* gradient, bool streamed,
                  Held<Compute<S>>& held) {
  using T = Compute<S>;
  using V = Vector<T>;
  const V offset = splat<V>(target.offset);
  const Scale<V> scale = target.scale.template as<V>();
  V values{}, slopes{};
  for (const Piece piece : Runs<T>(0, n)) {
    const int64_t begin = piece.begin, own = target.own - first - begin;
    V run_values{}, run_slopes{};
    const auto run = [&](auto holds_own) {
      for_each_register<T>(piece.count, [&](int64_t i, auto count) {
        V gap = load(x + begin + i, count, kStruckOut<T>) + offset;
        if constexpr (holds_own.value) gap = select(lane_mask<V>(own - i), splat<V>(kStruckOut<T>), gap);
        const auto terms = Formula::terms(gap);
        run_values += terms.value;
        if constexpr (kGradient) {
          run_slopes += terms.derivative[0];
          const V scaled = scale.apply(terms.derivative[0]);
          if (holds_own.value && i == Held<T>::begin(own)) {
            held.elements = scaled;
          } else {
            store(gradient + begin + i, scaled, count, streamed);
          }
        }
      });
    };
    if (own >= 0 && own < piece.count) {
      run(std::true_type{});
    } else {
      run(std::false_type{});
    }
    values += run_values;
    slopes += run_slopes;
  }
  return {sum_of_lanes(values), kGradient ? sum_of_lanes(slopes) : 0};
}

// The gaps of n classes to one of several targets: their totals. Adds to class_slopes. x is read in whole registers;
// the scores of targets and those beyond its end must be kStruckOut.
template <class Formula, bool kGradient, class T>
Totals meet_target(const T* x, int64_t n, T offset, T* class_slopes) {
  using V = Vector<T>;
  V values{}, slopes{};
  for (const Piece run : Runs<T>(0, n)) {
    V run_values{}, run_slopes{};
    for (int64_t i = run.begin; i < run.begin + run.count; i += kLanes<T>) {
      const auto terms = Formula::terms(load(x + i) + offset);
      run_values += terms.value;
      if constexpr (kGradient) {
        run_slopes += terms.derivative[0];
        store(class_slopes + i, load(class_slopes + i) + terms.derivative[0]);
      }
    }
    values += run_values;
    slopes += run_slopes;
  }
  return {sum_of_lanes(values), kGradient ? sum_of_lanes(slopes) : 0};
}

// Classes [first, first + n) of a row of several targets, which are sorted: their value. Writes class_slopes, the
// slopes of these classes, and adds to target_slopes. x has room for whole registers; scores that do not count are
// replaced in it.
template <class Formula, bool kGradient, class T>
double several_targets(T* x, int64_t first, int64_t n, const std::vector<int64_t>& targets,
                       const std::vector<T>& offsets, T* class_slopes, double* target_slopes) {
  for (auto y = std::lower_bound(targets.begin(), targets.end(), first); y != targets.end() && *y < first + n; ++y) {
    x[*y - first] = kStruckOut<T>;
  }
  const int64_t whole = (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  std::fill(x + n, x + whole, kStruckOut<T>);
  if constexpr (kGradient) std::fill_n(class_slopes, whole, T(0));
  double value = 0;
  // One target after the other: four at a time were measured to be no faster.
  for (size_t t = 0; t < targets.size(); ++t) {
    const Totals totals = meet_target<Formula, kGradient>(x, n, offsets[t], class_slopes);
    value += totals.value;
    target_slopes[t] += totals.slope;
  }
  return value;
}

}  // namespace fused_losses
