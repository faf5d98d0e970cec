// The passes over a chunk where rows have more terms than the cross-entropy or logits that are made of others, besides
// those of softmax_chunks.h; and which logit of a row is the largest.
#pragma once

#include <limits>

#include "softmax_engine.h"
#include "storage.h"

#include "../formulas/cross_entropy.h"

namespace fused_losses {

// Writes the logits of the softmax, made of n given ones, to `buffer`.
template <class S>
void map_logits(const LogitMap<Compute<S>>& map, const S* x, int64_t n, Compute<S>* buffer) {
  using V = Vector<Compute<S>>;
  for_each_register<Compute<S>>(
      n, [&](int64_t i, auto count) { store(buffer + i, map.template value<V>(load(x + i, count, 0)), count); });
}

// The summand e difference of the excess, where e is exp(difference); 0 where e is 0, also for an infinite difference.
template <class V>
V excess(V e, V difference) {
  return select(e != V{}, e * difference, V{});
}

// The excess of n logits x, U in formulas/cross_entropy.h.
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

// Writes the gradient of a chunk with respect to the given logits. numerator_factor and excess_factor are those of the
// cross-entropy and the terms together.
template <class S, class Targets>
void emit_with_terms(const LogitMap<Compute<S>>& map, const Compute<S>* x, Compute<S> reference,
                     Compute<S> numerator_factor, Compute<S> excess_factor, const Targets& q, Compute<S> soft_factor,
                     S* gradient, int64_t n, bool streamed) {
  using V = Vector<Compute<S>>;
  for_each_register<Compute<S>>(n, [&](int64_t i, auto count) {
    const V logits = load(x + i, count, 0), difference = logits - reference, e = exp_below_88(difference);
    V v = e * numerator_factor + excess(e, difference) * excess_factor;
    if constexpr (Targets::kAny) v += q.at(i, count) * soft_factor;
    store(gradient + i, v * map.template slope<V>(logits), count, streamed);
  });
}

// The largest logit of a row, and the first class that has it. NaN is passed over.
struct Largest {
  double value = -std::numeric_limits<double>::infinity();
  int64_t at = -1;

  void look_at(double x, int64_t c) {
    if (x > value || (at < 0 && x == value)) *this = {x, c};
  }
};

}  // namespace fused_losses
