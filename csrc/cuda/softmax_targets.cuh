// What is the same for rows and tiles: what a softmax is compared with, hot classes and soft targets, and what follows
// for a position; see formulas/cross_entropy.h. kSoft: there are soft targets. kTerms: the softmax has terms, other
// logits than those given, a gradient of its log-sum-exp, or is asked for its largest class.
#pragma once

#include "labels.cuh"

namespace fused_losses {

// e^x in one instruction of the unit for it, and a multiplication: to 2 units in the last place of float32, and 0
// where that has no normal number.
__device__ inline float approximate_exp(float x) {
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
  return exp(x);
#else
  constexpr float kLog2OfE = 1.4426950408889634f;
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * kLog2OfE));
  return result;
#endif
}

// The numerator e^x, x <= 0. Storage of 16 bits cannot tell the approximation's error.
template <bool kRounded>
__device__ inline float numerator(float x) {
  return kRounded ? approximate_exp(x) : exp(x);
}
template <bool kRounded>
__device__ inline double numerator(double x) {
  return exp(x);
}

// One instruction, and NaN is passed over: it shows in the sum of exponentials.
__device__ inline float larger_of(float a, float b) { return fmaxf(a, b); }
__device__ inline double larger_of(double a, double b) { return fmax(a, b); }

// A number to subtract from logits: of nothing but -inf, 0, so that exponentials are 0 and not NaN.
template <class T>
__device__ inline T finite_reference(T reference) {
  return reference == static_cast<T>(-INFINITY) ? T(0) : reference;
}

// A state as numbers that threads tell each other.
template <bool kSoft, bool kTerms>
inline constexpr int kStateNumbers = 2 + (kSoft ? 2 : 0) + (kTerms ? 1 : 0);

template <bool kSoft, bool kTerms, class T>
__device__ inline void write_state(const SoftmaxState<T>& state, T* numbers) {
  numbers[0] = state.reference;
  numbers[1] = state.sum;
  if constexpr (kSoft) {
    numbers[2] = state.mass;
    numbers[3] = state.cross;
  }
  if constexpr (kTerms) numbers[kStateNumbers<kSoft, kTerms> - 1] = state.excess;
}

template <bool kSoft, bool kTerms, class T>
__device__ inline SoftmaxState<T> read_state(const T* numbers) {
  SoftmaxState<T> state{numbers[0], numbers[1]};
  if constexpr (kSoft) {
    state.mass = numbers[2];
    state.cross = numbers[3];
  }
  if constexpr (kTerms) state.excess = numbers[kStateNumbers<kSoft, kTerms> - 1];
  return state;
}

// Brings a state to a larger maximum. Returns what to subtract from logits.
template <bool kRounded, bool kSoft, bool kTerms, class T>
__device__ inline T raise(SoftmaxState<T>& state, T larger) {
  const T reference = finite_reference(larger), step = state.reference - reference;
  const T shrunk = numerator<kRounded>(step);
  // Of nothing, the step is infinite.
  if constexpr (kTerms) state.excess = shrunk != 0 ? (state.excess + state.sum * step) * shrunk : T(0);
  state.sum *= shrunk;
  if (kSoft && state.mass != 0) state.cross += state.mass * (finite_reference(state.reference) - reference);
  state.reference = larger;
  return reference;
}

// exp(x - m) (x - m), which is 0 where the first is.
template <class T>
__device__ inline T excess(T e, T difference) {
  return e != 0 ? e * difference : T(0);
}

// Of one position.
template <class T>
struct Hot {
  int64_t y = -1;  // -1: none
  bool counts = false;
  T x_y = 0, w_y = 1, hot = 0;
  T slope = 0;         // what derivatives are multiplied by
  T lse_upstream = 0;  // the upstream gradient of its log-sum-exp
};

// What a position's gradient is made of, besides soft targets.
template <class T>
struct Slopes {
  T reference = 0;         // what numerators are relative to
  T numerator_factor = 0;  // what they are multiplied by
  SoftmaxTermsGradient<T> terms;
};

// What is the same for all positions.
template <class T, bool kSoft, bool kTerms>
class Targets {
 public:
  __device__ Targets(const SoftmaxKernel& kernel, double upstream, double divisor)
      : tensors_(kernel.tensors),
        map_(tensors_.terms),
        scale_(static_cast<T>(upstream / divisor)),
        keep_(static_cast<T>(1 - tensors_.label_smoothing)),
        constant_(static_cast<T>(tensors_.label_smoothing / static_cast<double>(tensors_.classes))) {}

  __device__ Hot<T> hot(const Position& position, bool live) const {
    Hot<T> result;
    result.counts = live;
    if (live && tensors_.labels.data) {
      result.y = label_of(tensors_, position);
      result.counts = result.y >= 0;
      if (result.counts) {
        result.x_y = logit(number_at(
            tensors_.input,
            offset_of(tensors_, tensors_.input.strides, position) + result.y * tensors_.input.strides.classes, T(0)));
        result.w_y = weight(result.y);
        result.hot = keep_ * result.w_y;
      }
    }
    if (result.counts) {
      result.slope = scale_ * at_position(tensors_.upstream, position, T(1));
      if constexpr (kTerms) result.lse_upstream = at_position(tensors_.lse_gradient, position, T(0));
    }
    return result;
  }

  __device__ T weight(int64_t c) const { return number_at(tensors_.weight, c * tensors_.weight.strides.classes, T(1)); }

  // The logit of the softmax, of the one that is given.
  __device__ T logit(T given) const {
    if constexpr (kTerms) given = map_.value(given);
    return given;
  }

  // The soft target of a class, whose probability is t.
  __device__ T soft(T t, int64_t c) const { return (t * keep_ + constant_) * weight(c); }

  // All of them, without probabilities. Called by all threads of the block.
  __device__ T mass_of_smoothing() const {
    T sum = 0;
    for (int64_t c = threadIdx.x; c < tensors_.classes; c += blockDim.x) sum += soft(T(0), c);
    return Group(blockDim.x).sum(sum);
  }

  // What the forward has kept of position i, if it has.
  __device__ bool given() const { return tensors_.backward && tensors_.reference; }
  __device__ SoftmaxState<T> read(int64_t i) const {
    SoftmaxState<T> state{static_cast<const T*>(tensors_.reference)[i], static_cast<const T*>(tensors_.sum)[i]};
    if (kTerms && tensors_.mean_excess) state.excess = static_cast<const T*>(tensors_.mean_excess)[i] * state.sum;
    return state;
  }

  __device__ Slopes<T> slopes(const SoftmaxState<T>& state, const Hot<T>& hot) const {
    Slopes<T> result;
    result.reference = finite_reference(state.reference);
    result.numerator_factor = (hot.hot + state.mass) * hot.slope / state.sum;
    if constexpr (kTerms) {
      const SoftmaxTerms& terms = tensors_.terms;
      result.terms = SoftmaxTermsGradient<T>(referred(state), static_cast<T>(terms.z_loss),
                                             static_cast<T>(terms.entropy), hot.slope, hot.lse_upstream);
      result.numerator_factor += result.terms.numerator_factor;
    }
    return result;
  }

  // With respect to a given logit: of numerator e, logit x and soft target q.
  __device__ T gradient(const Slopes<T>& slopes, const Hot<T>& hot, T e, T x, T q) const {
    T made = e * slopes.numerator_factor;
    if constexpr (kTerms) made += excess(e, x - slopes.reference) * slopes.terms.excess_factor;
    if constexpr (kSoft) made -= q * hot.slope;
    if constexpr (kTerms) made *= map_.slope(x);
    return made;
  }

  // At class y, p - 1 nearly cancels where p is nearly 1: minus the sum of the others, then.
  __device__ T gradient_at_label(const Slopes<T>& slopes, const SoftmaxState<T>& state, const Hot<T>& hot, T e_y,
                                 T others) const {
    const T q_y = kSoft ? soft(T(0), hot.y) : T(0);
    T made = gradient_at_hot(e_y, others, state.sum, hot.hot, state.mass, q_y) * hot.slope;
    if constexpr (kTerms) {
      made +=
          e_y * slopes.terms.numerator_factor + excess(e_y, hot.x_y - slopes.reference) * slopes.terms.excess_factor;
      made *= map_.slope(hot.x_y);
    }
    return made;
  }

  // With respect to the probability of class c, whose logit is x.
  __device__ T gradient_of_probability(const Slopes<T>& slopes, const Hot<T>& hot, T log_sum, T x, int64_t c) const {
    return (slopes.reference - x + log_sum) * (keep_ * hot.slope) * weight(c);
  }

  // Writes what a forward has found of position i, by one of its threads, and returns the loss.
  __device__ T finish(int64_t i, const Hot<T>& hot, const SoftmaxState<T>& found, int64_t largest) const {
    if (tensors_.backward) return 0;
    const SoftmaxState<T> state = referred(found);
    if (tensors_.reference) {
      static_cast<T*>(tensors_.reference)[i] = hot.counts ? state.reference : T(0);
      static_cast<T*>(tensors_.sum)[i] = hot.counts ? state.sum : T(1);
    }
    T value = 0;
    if (hot.counts) value = cross_entropy_value(state, tensors_.labels.data != nullptr, hot.hot, hot.x_y);
    if constexpr (kTerms) {
      const SoftmaxTerms& terms = tensors_.terms;
      if (tensors_.mean_excess) static_cast<T*>(tensors_.mean_excess)[i] = hot.counts ? state.excess / state.sum : T(0);
      if (tensors_.argmax) tensors_.argmax[i] = largest;
      if (hot.counts) value += terms_value(state, static_cast<T>(terms.z_loss), static_cast<T>(terms.entropy));
    }
    if (tensors_.losses.data) store_as(tensors_.losses.data, tensors_.losses.dtype, i, value);
    return value;
  }

 private:
  // Of nothing but -inf, relative to 0.
  __device__ static SoftmaxState<T> referred(SoftmaxState<T> state) {
    state.reference = finite_reference(state.reference);
    return state;
  }

  __device__ T at_position(const ClassTensor& tensor, const Position& position, T absent) const {
    return tensor.data ? number_at(tensor, offset_of(tensors_, tensor.strides, position), absent) : absent;
  }

  const SoftmaxArguments& tensors_;
  const LogitMap<T> map_;
  const T scale_, keep_, constant_;
};

}  // namespace fused_losses
