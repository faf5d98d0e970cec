// Squares of registers, transposed.
#pragma once

#include <utility>

#include "storage.h"

namespace fused_losses {

// Lanes of a and b, one after the other: those that `lane` names.
template <class V, int... lane>
inline V shuffled(V a, V b, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, lane...);
#else
  typedef std::conditional_t<sizeof(typename Lane<V>::type) == sizeof(int), int, long long> Index;
  typedef Index Indices __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(a, b, Indices{lane...});
#endif
}

// For two rows of squares of `step` by `step`: the first squares of both, and then the second ones.
template <int step, class V, int... lane>
inline void exchange(V& a, V& b, std::integer_sequence<int, lane...>) {
  constexpr int lanes = sizeof...(lane);
  const V first = shuffled(a, b, std::integer_sequence<int, (lane & step ? lanes + lane - step : lane)...>());
  b = shuffled(a, b, std::integer_sequence<int, (lane & step ? lanes + lane : lane + step)...>());
  a = first;
}

// Lane j of register i becomes lane i of register j.
template <class T, int step = 1>
inline void transpose(Vector<T> (&rows)[kLanes<T>]) {
  if constexpr (step < kLanes<T>) {
#pragma GCC unroll 64
    for (int i = 0; i < kLanes<T>; ++i) {
      if (!(i & step)) exchange<step>(rows[i], rows[i + step], std::make_integer_sequence<int, kLanes<T>>());
    }
    transpose<T, 2 * step>(rows);
  }
}

}  // namespace fused_losses
