// What a softmax does chunk by chunk besides the passes of softmax_chunks.h, where rows have more terms than the
// cross-entropy, or logits that are made of others; and which logit is the largest.
#pragma once

#include <limits>

#include "softmax_engine.h"
#include "storage.h"

#include "../formulas/cross_entropy.h"

namespace fused_losses {

// The logits of a chunk, in cache.
template <class S>
void map_logits(const LogitMap<Compute<S>>& map, const S* x, int64_t n, Compute<S>* buffer) {
  using V = Vector<Compute<S>>;
  for_each_register<Compute<S>>(
      n, [&](int64_t i, auto count) { store(buffer + i, map.template value<V>(load(x + i, count, 0)), count); });
}

// exp(x - reference) (x - reference), which is 0 where the first is.
template <class V>
V excess(V e, V difference) {
  return select(e != V{}, e * difference, V{});
}

template <class T>
double excess_of(const T* x, int64_t n, T reference) {
  using V = Vector<T>;
  constexpr double kLowest = -std::numeric_limits<double>::infinity();
  V sum{};
  for_each_register<T>(n, [&](int64_t i, auto count) {
    const V difference = load(x + i, count, kLowest) - reference;
    sum += excess(exp_below_88(difference), difference);
  });
  return sum_of_lanes(sum);
}

// The gradient of a chunk, by what is added to a softmax's own.
template <class S>
void emit_with_terms(const LogitMap<Compute<S>>& map, const Compute<S>* x, Compute<S> reference,
                     Compute<S> numerator_factor, Compute<S> excess_factor, const Compute<S>* q, Compute<S> soft_factor,
                     S* gradient, int64_t n, bool streamed) {
  using V = Vector<Compute<S>>;
  for_each_register<Compute<S>>(n, [&](int64_t i, auto count) {
    const V logits = load(x + i, count, 0), difference = logits - reference, e = exp_below_88(difference);
    V v = e * numerator_factor + excess(e, difference) * excess_factor;
    if (q) v += load(q + i, count, 0) * soft_factor;
    store(gradient + i, v * map.template slope<V>(logits), count, streamed);
  });
}

// The largest of a row, and the first class that has it; NaN is passed over.
struct Largest {
  double value = -std::numeric_limits<double>::infinity();
  int64_t at = -1;

  void look_at(double x, int64_t c) {
    if (x > value || (at < 0 && x == value)) *this = {x, c};
  }
};

}  // namespace fused_losses
