// What is the same for rows and tiles: labels and soft targets, and what follows from them for a position; see
// formulas/cross_entropy.h for the formula and its names. All is compiled for
//   kSoft   whether there are soft targets: probabilities or label smoothing
//   kTerms  whether there are terms, logits that are made of others, an upstream gradient of the log-sum-exp, or the
//   class
//           of the largest logit is asked for
#pragma once

#include "labels.cuh"
#include "softmax_access.cuh"

namespace fused_losses {

// e^x by a multiplication and the GPU's own instruction for 2^x: right to 2 units in the last place of float32, and 0
// where the result would be subnormal.
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

// The numerator e^x for x <= 0. If kRounded, logits and gradients have 16 bits, too few to show the error of the
// approximation.
template <bool kRounded>
__device__ inline float numerator(float x) {
  return kRounded ? approximate_exp(x) : exp(x);
}
template <bool kRounded>
__device__ inline double numerator(double x) {
  return exp(x);
}

// What to subtract from logits: the reference, but 0 for -inf, so that exponentials are 0 and not NaN.
template <class T>
__device__ inline T finite_reference(T reference) {
  return reference == static_cast<T>(-INFINITY) ? T(0) : reference;
}

// A state as an array of numbers, which threads can exchange.
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

// Makes the sums of a state relative to a larger reference, as SoftmaxState::raise does, and returns that, but finite.
template <bool kRounded, bool kSoft, bool kTerms, class T>
__device__ inline T raise(SoftmaxState<T>& state, T larger) {
  const T reference = finite_reference(larger), step = state.reference - reference;
  const T shrunk = numerator<kRounded>(step);
  // Where nothing was added before, the state's reference is -inf, and so is the step.
  if constexpr (kTerms) state.excess = shrunk != 0 ? (state.excess + state.sum * step) * shrunk : T(0);
  state.sum *= shrunk;
  if (kSoft && state.mass != 0) state.cross += state.mass * (finite_reference(state.reference) - reference);
  state.reference = larger;
  return reference;
}

// How many packs or groups of classes a thread adds up before their sums join those of earlier ones: the error of a sum
// grows with the number of its summands, of which a thread has hundreds in rows of many thousands of classes.
inline constexpr int kRun = 32;

// A sum of runs. A thread adds to `run`, and calls step() after each pack or group of classes.
template <class T>
struct SumOfRuns {
  T run = 0, before = 0;
  int left = kRun;

  __device__ void step() {
    if (--left != 0) return;
    before += run;
    run = 0;
    left = kRun;
  }
  __device__ T total() const { return before + run; }
};

// The same for all sums of a part of a row. The reference of `run` is that of all earlier runs or larger.
template <class T>
struct SoftmaxRuns {
  SoftmaxState<T> run = {}, before = {};
  int left = kRun;

  __device__ void step() {
    if (--left != 0) return;
    before = total();
    run = {before.reference};
    left = kRun;
  }
  __device__ SoftmaxState<T> total() const {
    SoftmaxState<T> all = before;
    all.merge(run);
    return all;
  }
};

// The summand e difference of the excess, where e is exp(difference); 0 where e is 0, also for an infinite difference.
template <class T>
__device__ inline T excess(T e, T difference) {
  return e != 0 ? e * difference : T(0);
}

// What is known of a position before its logits are read.
template <class T>
struct Hot {
  int64_t y = -1;  // its class; -1, if it is ignored or has probabilities
  bool counts = false;
  T x_y = 0, w_y = 1, hot = 0;
  T slope = 0;         // what derivatives are multiplied by
  T lse_upstream = 0;  // the upstream gradient of its log-sum-exp
};

// What the gradient of a position is made of besides its soft targets.
template <class T>
struct Slopes {
  T reference = 0;         // what numerators are relative to
  T numerator_factor = 0;  // what they are multiplied by
  SoftmaxTermsGradient<T> terms;
};

// Targets of all positions, and the results of each.
template <class T, bool kSoft, bool kTerms>
class Targets {
 public:
  __device__ Targets(const SoftmaxKernel& kernel, double upstream, double divisor)
      : tensors_(kernel.tensors),
        map_(tensors_.terms),
        scale_(static_cast<T>(upstream / divisor)),
        keep_(static_cast<T>(1 - tensors_.label_smoothing)),
        constant_(static_cast<T>(tensors_.label_smoothing / static_cast<double>(tensors_.classes))) {}

  // What is known of a position of class y that counts or not, but for the logit of its class.
  __device__ Hot<T> hot(const Position& position, int64_t y, bool counts) const {
    Hot<T> result;
    result.y = y;
    result.counts = counts;
    if (y >= 0) {
      result.w_y = weight(y);
      result.hot = keep_ * result.w_y;
    }
    if (counts) {
      result.slope = scale_ * at_position(tensors_.upstream, position, T(1));
      result.lse_upstream = at_position(tensors_.lse_gradient, position, T(0));
    }
    return result;
  }
  // All of it. A live position is one that exists.
  __device__ Hot<T> hot(const Position& position, bool live) const {
    const int64_t y = live && tensors_.labels.data ? label_of(tensors_, position) : -1;
    Hot<T> result = hot(position, y, live && (y >= 0 || !tensors_.labels.data));
    if (y >= 0) {
      const ClassTensor& x = tensors_.input;
      result.x_y = logit(number_at(x, offset_of(tensors_, x.strides, position) + y * x.strides.classes, T(0)));
    }
    return result;
  }

  __device__ T weight(int64_t c) const { return number_at(tensors_.weight, c * tensors_.weight.strides.classes, T(1)); }

  // The logit of the softmax that is made of a given one.
  __device__ T logit(T given) const {
    if constexpr (kTerms) given = map_.value(given);
    return given;
  }

  // The soft target of class c, whose probability is t.
  __device__ T soft(T t, int64_t c) const { return (t * keep_ + constant_) * weight(c); }

  // The sum of the soft targets where there are no probabilities. Called by all threads of the block. Weights are added
  // up, not soft targets: where all are 1, their sum is exact, and thousands of roundings to the same side are not.
  __device__ T mass_of_smoothing() const {
    SumOfRuns<T> sum;
    for (int64_t c = threadIdx.x; c < tensors_.classes; c += blockDim.x) {
      sum.run += weight(c);
      sum.step();
    }
    return Group(blockDim.x).sum(sum.total()) * constant_;
  }

  // Whether the forward has kept statistics, and the state of position i that is made of them.
  __device__ bool given() const { return tensors_.backward && tensors_.reference; }
  __device__ SoftmaxState<T> read(int64_t i) const {
    SoftmaxState<T> state{static_cast<const T*>(tensors_.reference)[i], static_cast<const T*>(tensors_.sum)[i]};
    if (tensors_.mean_excess) state.excess = static_cast<const T*>(tensors_.mean_excess)[i] * state.sum;
    return state;
  }

  __device__ Slopes<T> slopes(const SoftmaxState<T>& state, const Hot<T>& hot) const {
    Slopes<T> result;
    result.reference = finite_reference(state.reference);
    result.numerator_factor = divide_by_normal((hot.hot + state.mass) * hot.slope, state.sum);
    const SoftmaxTerms& terms = tensors_.terms;
    if (terms.z_loss != 0 || terms.entropy != 0 || tensors_.lse_gradient.data) {
      result.terms = SoftmaxTermsGradient<T>(referred(state), static_cast<T>(terms.z_loss),
                                             static_cast<T>(terms.entropy), hot.slope, hot.lse_upstream);
      result.numerator_factor += result.terms.numerator_factor;
    }
    return result;
  }

  // The gradient with respect to a given logit, of which x was made; e is its numerator, q its soft target.
  __device__ T gradient(const Slopes<T>& slopes, const Hot<T>& hot, T e, T x, T q) const {
    T made = e * slopes.numerator_factor;
    if constexpr (kTerms) made += excess(e, x - slopes.reference) * slopes.terms.excess_factor;
    if constexpr (kSoft) made -= q * hot.slope;
    if constexpr (kTerms) made *= map_.slope(x);
    return made;
  }

  // The same at class y, from the sum of all other numerators: see gradient_at_hot.
  __device__ T gradient_at_label(const Slopes<T>& slopes, const SoftmaxState<T>& state, const Hot<T>& hot, T e_y,
                                 T others) const {
    const T q_y = kSoft ? soft(T(0), hot.y) : T(0);
    T made = gradient_at_hot(e_y, others, state.sum, hot.hot, state.mass, q_y) * hot.slope;
    if (slopes.terms.numerator_factor != 0) made += e_y * slopes.terms.numerator_factor;
    if constexpr (kTerms) {
      made += excess(e_y, hot.x_y - slopes.reference) * slopes.terms.excess_factor;
      made *= map_.slope(hot.x_y);
    }
    return made;
  }

  // The gradient with respect to the probability of class c, whose logit is x.
  __device__ T gradient_of_probability(const Slopes<T>& slopes, const Hot<T>& hot, T log_sum, T x, int64_t c) const {
    return (slopes.reference - x + log_sum) * (keep_ * hot.slope) * weight(c);
  }

  // Writes what a forward has found of position i, and returns its loss. Called by one thread of the position.
  __device__ T finish(int64_t i, const Hot<T>& hot, const SoftmaxState<T>& found, int64_t largest) const {
    if (tensors_.backward) return 0;
    const SoftmaxState<T> state = referred(found);
    if (tensors_.reference) {
      static_cast<T*>(tensors_.reference)[i] = hot.counts ? state.reference : T(0);
      static_cast<T*>(tensors_.sum)[i] = hot.counts ? state.sum : T(1);
    }
    T value = 0;
    if (hot.counts) value = cross_entropy_value(state, tensors_.labels.data != nullptr, hot.hot, hot.x_y);
    const SoftmaxTerms& terms = tensors_.terms;
    if (tensors_.mean_excess) static_cast<T*>(tensors_.mean_excess)[i] = hot.counts ? state.excess / state.sum : T(0);
    if (tensors_.argmax) tensors_.argmax[i] = largest;
    if (hot.counts) value += terms_value(state, static_cast<T>(terms.z_loss), static_cast<T>(terms.entropy));
    if (tensors_.losses.data) store_as(tensors_.losses.data, tensors_.losses.dtype, i, value);
    return value;
  }

 private:
  // The state with a finite reference.
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
