// Squares of registers, and matrices of any size, transposed.
#pragma once

#include <algorithm>
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

// Copies the rows of a matrix, which are `stride` apart, to columns of another, whose rows are `line` apart: element
// (r, c) of (rows, columns) to (c, r).
template <class To, class From>
void transpose_in(const From* from, int64_t stride, int64_t rows, int64_t columns, To* to, int64_t line) {
  using T = Compute<To>;
  constexpr int lanes = kLanes<T>;
  for (int64_t r = 0; r < rows; r += lanes) {
    const int height = static_cast<int>(std::min<int64_t>(lanes, rows - r));
    for_each_register<T>(columns, [&](int64_t c, auto width) {
      Vector<T> square[lanes] = {};
      const auto read = [&](int i) { square[i] = load(from + (r + i) * stride + c, width, 0); };
      if (height == lanes) {
#pragma GCC unroll 64
        for (int i = 0; i < lanes; ++i) read(i);
      } else {
        for (int i = 0; i < height; ++i) read(i);
      }
      transpose<T>(square);
      for (int i = 0; i < width; ++i) {
        To* const place = to + (c + i) * line + r;
        height == lanes ? store(place, square[i]) : store_partial(place, square[i], height);
      }
    });
  }
}

// The other way round.
template <class To, class From>
void transpose_out(To* to, int64_t stride, int64_t rows, int64_t columns, const From* from, int64_t line) {
  using T = Compute<From>;
  constexpr int lanes = kLanes<T>;
  for (int64_t r = 0; r < rows; r += lanes) {
    const int height = static_cast<int>(std::min<int64_t>(lanes, rows - r));
    for_each_register<T>(columns, [&](int64_t c, auto width) {
      Vector<T> square[lanes] = {};
      for (int i = 0; i < width; ++i) {
        const From* const place = from + (c + i) * line + r;
        square[i] = height == lanes ? load(place) : load_partial(place, height, 0);
      }
      transpose<T>(square);
      for (int i = 0; i < height; ++i) store(to + (r + i) * stride + c, square[i], width);
    });
  }
}

}  // namespace fused_losses
