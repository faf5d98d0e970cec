// The passes of a softmax over a chunk of one row, whose classes lie side by side.
#pragma once

#include <limits>
#include <type_traits>

#include "gather.h"
#include "storage.h"

#include "../formulas/cross_entropy.h"

namespace fused_losses {

// What to subtract from logits: the reference, but 0 for -inf.
template <class T>
T finite_reference(T reference) {
  // Where all logits of a chunk are -inf, exp(-inf - -inf) would be NaN; its numerators are to be 0.
  return reference == -std::numeric_limits<T>::infinity() ? T(0) : reference;
}

// The soft targets q of a chunk, as loops read them: q[i] of the register from i on. There may be none,
template <class T>
struct NoTargets {
  static constexpr bool kAny = false;
};
// the same one for all classes,
template <class T>
struct EvenTargets {
  static constexpr bool kAny = true;
  T q;
  template <class Count>
  Vector<T> at(int64_t, Count) const {
    return splat<Vector<T>>(q);
  }
};
// or one for each class, in an array.
template <class T>
struct ListedTargets {
  static constexpr bool kAny = true;
  const T* q;
  template <class Count>
  Vector<T> at(int64_t i, Count count) const {
    return load(q + i, count, 0);
  }
};

// The largest of n elements. NaN may be passed over, since it makes the sum of exponentials NaN anyway.
template <class S>
Compute<S> max_of(const S* x, int64_t n) {
  using V = Vector<Compute<S>>;
  constexpr int lanes = kLanes<Compute<S>>;
  constexpr double kLowest = -std::numeric_limits<double>::infinity();
  // Four comparisons at a time, since one that follows another must wait for it.
  V largest[4] = {splat<V>(kLowest), splat<V>(kLowest), splat<V>(kLowest), splat<V>(kLowest)};
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    for (int k = 0; k < 4; ++k) largest[k] = larger(load(x + i + k * lanes), largest[k]);
  }
  for_each_register<Compute<S>>(
      n - i, [&](int64_t j, auto count) { largest[0] = larger(load(x + i + j, count, kLowest), largest[0]); });
  return max_of_lanes(larger(larger(largest[0], largest[1]), larger(largest[2], largest[3])));
}

// The first pass over n logits x of a chunk. Adds them to `state`; their numerators, relative to the state's reference,
// go to `numerators` if kStore. Returns the largest logit. If that is more than kHeadroom above the reference, the
// state is left as it was, and the chunk must be done again with a larger one.
template <bool kStore, class S, class Targets>
Compute<S> accumulate_relative(SoftmaxState<double>& state, const S* x, int64_t n, const Targets& q,
                               Compute<S>* numerators) {
  using T = Compute<S>;
  using V = Vector<T>;
  constexpr double kLowest = -std::numeric_limits<double>::infinity();
  const T shift = finite_reference(static_cast<T>(state.reference));
  V largest = splat<V>(kLowest), sum{}, mass{}, cross{};
  for_each_register<T>(n, [&](int64_t i, auto count) {
    // Asks for the next chunk while this one is computed. Unlike the hardware's prefetching, this crosses pages.
    __builtin_prefetch(x + i + kChunk);
    const V logits = load(x + i, count, kLowest);
    const V difference = logits - shift;
    const V e = exp_below_88(difference);
    largest = larger(logits, largest);
    sum += e;
    if constexpr (kStore) store(numerators + i, e, count);
    if constexpr (Targets::kAny) {
      V soft = q.at(i, count), product = soft * difference;
      if constexpr (std::is_same_v<decltype(count), int>) {
        soft = keep_lanes(soft, count, 0);
        product = keep_lanes(product, count, 0);
      }
      mass += soft;
      cross += product;
    }
  });
  const T top = max_of_lanes(largest);
  if (top > state.reference + kHeadroom) return top;
  state.sum += sum_of_lanes(sum);
  if constexpr (Targets::kAny) {
    state.mass += sum_of_lanes(mass);
    state.cross += sum_of_lanes(cross);
  }
  return top;
}

// The first pass, with a larger reference where it must be done again.
template <bool kStore, class S, class Targets>
void accumulate_chunk(SoftmaxState<double>& state, const S* x, int64_t n, const Targets& q, Compute<S>* numerators) {
  if (state.reference == -std::numeric_limits<double>::infinity()) state.raise(max_of(x, n));
  const Compute<S> top = accumulate_relative<kStore>(state, x, n, q, numerators);
  if (top > state.reference + kHeadroom) {
    state.raise(top);
    accumulate_relative<kStore>(state, x, n, q, numerators);
  }
}

// The second pass over a chunk, which writes the gradient: from the numerators that the first pass has kept.
template <class S, class Targets>
void emit_from_numerators(const Compute<S>* numerators, Compute<S> factor, const Targets& q, Compute<S> soft_factor,
                          S* gradient, int64_t n, bool streamed) {
  using V = Vector<Compute<S>>;
  for_each_register<Compute<S>>(n, [&](int64_t i, auto count) {
    V v = load(numerators + i, count, 0) * factor;
    if constexpr (Targets::kAny) v += q.at(i, count) * soft_factor;
    store(gradient + i, v, count, streamed);
  });
}

// The same from logits, where numerators were not kept.
template <class S, class Targets>
void emit_from_logits(const S* x, Compute<S> reference, Compute<S> factor, const Targets& q, Compute<S> soft_factor,
                      S* gradient, int64_t n, bool streamed) {
  using V = Vector<Compute<S>>;
  for_each_register<Compute<S>>(n, [&](int64_t i, auto count) {
    V v = exp_below_88(load(x + i, count, 0) - reference) * factor;
    if constexpr (Targets::kAny) v += q.at(i, count) * soft_factor;
    store(gradient + i, v, count, streamed);
  });
}

// Writes the gradient of the probabilities, factor w_c ((reference - x_c) + log_sum).
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
