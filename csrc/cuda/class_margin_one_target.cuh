// What the kernels for one target in each row compute, wherever the scores come from.
#pragma once

#include "class_margin_engine.h"
#include "group.cuh"

namespace fused_losses {

// What both kernels are given.
struct MultiMarginKernel {
  ClassMarginArguments tensors;
  Scaling scaling;
  Reduced reduced;
  int64_t shift;  // of a row at offset 0 (lines.cuh)
  int lanes;      // threads that share a row
};

// What a row's target and weight make of a score. The forward computes the values of losses, and the gradient, if it is
// wanted; the backward computes the gradient.
template <class Formula, class T, bool kForward>
class OneTarget {
 public:
  __device__ OneTarget(const ClassMarginArguments& tensors, T scale)
      : tensors_(tensors),
        formula_{tensors.margin},
        classes_(static_cast<T>(tensors.classes)),
        scale_(scale / classes_) {}

  // The target of a row.
  __device__ static int64_t label(const ClassMarginArguments& tensors, int64_t row) {
    const int64_t y = static_cast<const int64_t*>(tensors.labels.data)[row * tensors.labels.row_stride];
    const bool in_bounds = y >= 0 && y < tensors.classes;
    check(in_bounds, "fused_losses: target is out of bounds");
    return in_bounds ? y : 0;
  }

  // Begins a row whose target is y, with this score.
  __device__ void begin(int64_t row, int64_t y, T score) {
    const RowTensor &weight = tensors_.weight, &upstream = tensors_.upstream;
    offset_ = formula_.offset(score);
    factor_ = load_or(weight.data, weight.dtype, y * weight.class_stride, T(1));
    const T share = scale_ * load_or(upstream.data, upstream.dtype, row * upstream.row_stride, T(1));
    weighted_ = share * factor_;
    none_ = share * 0;
    slopes_ = value_ = 0;
  }

  // The derivative with respect to the score of a class. That of the target itself must be minus infinity.
  __device__ T operator()(T score) {
    const T gap = score + offset_;
    // The weight counts only where there is a slope, since 0 times an infinite weight would be NaN.
    T derivative = none_;
    if (gap > 0) {
      const auto terms = formula_.terms(gap);
      if constexpr (kForward) value_ += terms.value;
      slopes_ += terms.derivative[0];
      derivative = formula_.scaled(terms.derivative[0], weighted_);
    }
    return derivative;
  }

  // Adds up what the threads of a group have seen.
  __device__ void merge(const Group& group) {
    constexpr int kSums = kForward ? 2 : 1;
    T sums[] = {slopes_, value_};
    group.merge_all<kSums>(sums, [](const T* other, T* own) { unrolled<kSums>([&](int k) { own[k] += other[k]; }); });
    slopes_ = sums[0];
    value_ = sums[1];
  }

  // Once a row is done: the derivative with respect to the target's score; and the loss, which is written if it is
  // wanted.
  __device__ T derivative() const { return slopes_ > 0 ? -(slopes_ * weighted_) : -none_; }
  __device__ T loss(int64_t row) const {
    const T loss = value_ != 0 ? value_ * factor_ / classes_ : value_;
    if (tensors_.losses.data) store_as(tensors_.losses.data, tensors_.losses.dtype, row, loss);
    return loss;
  }

 private:
  const ClassMarginArguments& tensors_;
  const Formula formula_;
  const T classes_, scale_;
  T offset_ = 0, factor_ = 0, weighted_ = 0, none_ = 0;
  T slopes_ = 0, value_ = 0;
};

// What both kernels begin and end with: body(target, group, sum) does all rows of a block, and adds losses to the sum.
template <class Formula, class T, bool kForward, class Body>
__device__ inline void with_rows(const MultiMarginKernel& kernel, const Body& body) {
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel.scaling);
  OneTarget<Formula, T, kForward> target(kernel.tensors, static_cast<T>(upstream / divisor));
  double sum = 0;
  body(target, Group(kernel.lanes), sum);
  if (kForward && kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

}  // namespace fused_losses
