// Softmax over rows that lie in memory as they are: the passes over a chunk of one row.
#pragma once

#include <limits>
#include <type_traits>

#include "gather.h"
#include "storage.h"

#include "../formulas/cross_entropy.h"

namespace fused_losses {

template <class T>
T finite_reference(T reference) {
  // exp(-inf - -inf) would be NaN where a whole chunk is masked by -inf; its numerators are 0.
  return reference == -std::numeric_limits<T>::infinity() ? T(0) : reference;
}

// The largest of n elements; NaN elements may or may not count (the sum of exponentials will be NaN).
template <class S>
Compute<S> max_of(const S* x, int64_t n) {
  using V = Vector<Compute<S>>;
  constexpr int lanes = kLanes<Compute<S>>;
  constexpr double kLowest = -std::numeric_limits<double>::infinity();
  // Four at a time: one comparison would wait for the one before.
  V largest[4] = {splat<V>(kLowest), splat<V>(kLowest), splat<V>(kLowest), splat<V>(kLowest)};
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    for (int k = 0; k < 4; ++k) largest[k] = larger(load(x + i + k * lanes), largest[k]);
  }
  for_each_register<Compute<S>>(
      n - i, [&](int64_t j, auto count) { largest[0] = larger(load(x + i + j, count, kLowest), largest[0]); });
  return max_of_lanes(larger(larger(largest[0], largest[1]), larger(largest[2], largest[3])));
}

// First pass over a chunk: adds it to `state`, whose maximum is what the chunk's numerators refer to. They go to
// `numerators`; q is read if kSoft. Returns the largest of the chunk, which tells whether all this was in vain.
template <bool kStore, bool kSoft, class S>
Compute<S> accumulate_relative(SoftmaxState<double>& state, const S* x, int64_t n, const Compute<S>* q,
                               Compute<S>* numerators) {
  using T = Compute<S>;
  using V = Vector<T>;
  constexpr double kLowest = -std::numeric_limits<double>::infinity();
  const T shift = finite_reference(static_cast<T>(state.reference));
  V largest = splat<V>(kLowest), sum{}, mass{}, cross{};
  for_each_register<T>(n, [&](int64_t i, auto count) {
    // The next chunk, while this one is computed: neither pages nor the end of a row stop these.
    __builtin_prefetch(x + i + kChunk);
    const V logits = load(x + i, count, kLowest);
    const V difference = logits - shift;
    const V e = exp_below_88(difference);
    largest = larger(logits, largest);
    sum += e;
    if constexpr (kStore) store(numerators + i, e, count);
    if constexpr (kSoft) {
      const V soft = load(q + i, count, 0);
      mass += soft;
      V product = soft * difference;
      if constexpr (std::is_same_v<decltype(count), int>) product = keep_lanes(product, count, 0);
      cross += product;
    }
  });
  const T top = max_of_lanes(largest);
  if (top > state.reference + kHeadroom) return top;
  state.sum += sum_of_lanes(sum);
  if constexpr (kSoft) {
    state.mass += sum_of_lanes(mass);
    state.cross += sum_of_lanes(cross);
  }
  return top;
}

template <bool kStore, bool kSoft, class S>
void accumulate_chunk(SoftmaxState<double>& state, const S* x, int64_t n, const Compute<S>* q, Compute<S>* numerators) {
  if (state.reference == -std::numeric_limits<double>::infinity()) state.raise(max_of(x, n));
  const Compute<S> top = accumulate_relative<kStore, kSoft>(state, x, n, q, numerators);
  if (top > state.reference + kHeadroom) {
    state.raise(top);
    accumulate_relative<kStore, kSoft>(state, x, n, q, numerators);
  }
}

// Second pass over a chunk, from the numerators that the first one kept.
template <bool kSoft, class S>
void emit_from_numerators(const Compute<S>* numerators, Compute<S> factor, const Compute<S>* q, Compute<S> soft_factor,
                          S* gradient, int64_t n, bool streamed) {
  using V = Vector<Compute<S>>;
  for_each_register<Compute<S>>(n, [&](int64_t i, auto count) {
    V v = load(numerators + i, count, 0) * factor;
    if constexpr (kSoft) v += load(q + i, count, 0) * soft_factor;
    store(gradient + i, v, count, streamed);
  });
}

// The same from logits, where numerators were not kept.
template <bool kSoft, class S>
void emit_from_logits(const S* x, Compute<S> reference, Compute<S> factor, const Compute<S>* q, Compute<S> soft_factor,
                      S* gradient, int64_t n, bool streamed) {
  using V = Vector<Compute<S>>;
  for_each_register<Compute<S>>(n, [&](int64_t i, auto count) {
    V v = exp_below_88(load(x + i, count, 0) - reference) * factor;
    if constexpr (kSoft) v += load(q + i, count, 0) * soft_factor;
    store(gradient + i, v, count, streamed);
  });
}

// The gradient of the probabilities: factor w_c ((reference - x_c) + log_sum).
template <class S, class P>
void emit_probabilities_gradient(const S* x, Compute<S> reference, Compute<S> log_sum, Compute<S> factor,
                                 const Compute<S>* weight, P* gradient, int64_t n) {
  using T = Compute<S>;
  using V = Vector<T>;
  for_each_register<T>(n, [&](int64_t i, auto count) {
    V v = ((reference - load(x + i, count, 0)) + log_sum) * factor;
    if (weight) v *= load(weight + i, count, 0);
    if constexpr (std::is_same_v<Compute<P>, T>) store(gradient + i, v, count);
  });
}

}  // namespace fused_losses
