// The loops of the class margin engine: a chunk of one row, for one target or for several.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "blocks.h"

namespace fused_losses {

// In place of a class that is not to count: it leaves no gap.
template <class T>
constexpr T kStruckOut = -std::numeric_limits<T>::infinity();

struct Totals {
  double value = 0;
  double slope = 0;

  void operator+=(const Totals& other) {
    value += other.value;
    slope += other.slope;
  }
};

// From slopes to the gradient: times the upstream gradient and the weight, but by the weight only where there is
// a slope, since 0 times infinity is NaN.
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

template <class T>
struct OneTarget {
  int64_t own;  // the target's class
  T offset;
  Scale<double> scale;
};

// A mask of lane k; of none, if there is no such lane.
template <class V>
auto lane_mask(int64_t k) {
  return lane_numbers<V>() == static_cast<typename Lane<V>::type>(k);
}

// The register that holds a row's target, for when the target's gradient is known, at the row's end. It is stored
// then, and only then: an element stored after its cache line went past the caches brings the line back.
template <class T>
struct Held {
  Vector<T> elements;

  // Of the row's registers, the first class of the one that holds `own`.
  static int64_t begin(int64_t own) { return own / kLanes<T> * kLanes<T>; }

  // For a row of n classes.
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

// Classes [first, first + n) of a row of one target; x and gradient are where they begin, and first is where a
// register of the row does.
template <class Formula, bool kGradient, class S>
Totals one_target(const S* x, int64_t first, int64_t n, const OneTarget<Compute<S>>& target, S* gradient, bool streamed,
                  Held<Compute<S>>& held) {
  using T = Compute<S>;
  using V = Vector<T>;
  const V offset = splat<V>(target.offset);
  const Scale<V> scale = target.scale.template as<V>();
  V values{}, slopes{};
  for_each_run<T>(n, [&](int64_t begin, int64_t length) {
    const int64_t own = target.own - first - begin;
    V run_values{}, run_slopes{};
    const auto run = [&](auto holds_own) {
      for_each_register<T>(length, [&](int64_t i, auto count) {
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
    if (own >= 0 && own < length) {
      run(std::true_type{});
    } else {
      run(std::false_type{});
    }
    values += run_values;
    slopes += run_slopes;
  });
  return {sum_of_lanes(values), kGradient ? sum_of_lanes(slopes) : 0};
}

// A chunk in whole registers, the row's targets and what is beyond its end struck out, meets one of the targets:
// its totals. Adds to the slopes of the classes.
template <class Formula, bool kGradient, class T>
Totals meet_target(const T* x, int64_t n, T offset, T* class_slopes) {
  using V = Vector<T>;
  V values{}, slopes{};
  for_each_run<T>(n, [&](int64_t begin, int64_t length) {
    V run_values{}, run_slopes{};
    for (int64_t i = begin; i < begin + length; i += kLanes<T>) {
      const auto terms = Formula::terms(load(x + i) + offset);
      run_values += terms.value;
      if constexpr (kGradient) {
        run_slopes += terms.derivative[0];
        store(class_slopes + i, load(class_slopes + i) + terms.derivative[0]);
      }
    }
    values += run_values;
    slopes += run_slopes;
  });
  return {sum_of_lanes(values), kGradient ? sum_of_lanes(slopes) : 0};
}

// Classes [first, first + n) of a row of several targets, which are sorted: the value. Writes the slopes of these
// classes and adds to those of the targets. x has room for whole registers, and is changed.
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
  // One after the other: measured, meeting four at a time is no faster.
  for (size_t t = 0; t < targets.size(); ++t) {
    const Totals totals = meet_target<Formula, kGradient>(x, n, offsets[t], class_slopes);
    value += totals.value;
    target_slopes[t] += totals.slope;
  }
  return value;
}

}  // namespace fused_losses
