// What a softmax is compared with: hot classes and soft targets; see formulas/cross_entropy.h.
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
__device__ inline T reference_of(T max) {
  return max == static_cast<T>(-INFINITY) ? T(0) : max;
}

// Of one position.
template <class T>
struct Hot {
  int64_t y = -1;  // -1: none
  bool counts = false;
  T x_y = 0, w_y = 1, hot = 0;
  T slope = 0;  // what derivatives are multiplied by
};

// What is the same for all positions.
template <class T>
class Targets {
 public:
  __device__ Targets(const SoftmaxKernel& kernel, double upstream, double divisor)
      : tensors_(kernel.tensors),
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
        result.x_y = number_at(
            tensors_.input,
            offset_of(tensors_, tensors_.input.strides, position) + result.y * tensors_.input.strides.classes, T(0));
        result.w_y = weight(result.y);
        result.hot = keep_ * result.w_y;
      }
    }
    if (result.counts) {
      result.slope = scale_;
      if (tensors_.upstream.data) {
        result.slope *= number_at(tensors_.upstream, offset_of(tensors_, tensors_.upstream.strides, position), T(1));
      }
    }
    return result;
  }

  __device__ T weight(int64_t c) const { return number_at(tensors_.weight, c * tensors_.weight.strides.classes, T(1)); }
  __device__ T keep() const { return keep_; }

  // The soft target of a class, whose probability is t.
  __device__ T soft(T t, int64_t c) const { return (t * keep_ + constant_) * weight(c); }

  // All of them, without probabilities. Called by all threads of the block.
  __device__ T mass_of_smoothing() const {
    T sum = 0;
    for (int64_t c = threadIdx.x; c < tensors_.classes; c += blockDim.x) sum += soft(T(0), c);
    return Group(blockDim.x).sum(sum);
  }

 private:
  const CrossEntropyArguments& tensors_;
  const T scale_, keep_, constant_;
};

}  // namespace fused_losses
