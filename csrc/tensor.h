// The layouts of results, and the order in which the elements of broadcast operands are visited.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>

#include "checked_view.h"

namespace fused_losses {

// Every location between the first and the last element is used exactly once.
inline bool is_dense(const View& view) {
  int order[kMaxDims];
  int used = 0;
  for (int d = 0; d < view.dims; ++d) {
    if (view.sizes[d] != 1) order[used++] = d;
  }
  std::sort(order, order + used, [&](int a, int b) { return view.strides[a] < view.strides[b]; });
  int64_t expected = 1;
  for (int k = 0; k < used; ++k) {
    if (view.strides[order[k]] != expected) return false;
    expected *= view.sizes[order[k]];
  }
  return true;
}

// More elements than this have more than 2^63 bytes, if they are of 8 bytes.
inline constexpr int64_t kMostElements = int64_t{1} << 60;

// Sizes and strides of a result: those of `like`, if it has these sizes and is dense; else it is contiguous.
struct Layout {
  int dims;
  int64_t count = 1;
  int64_t sizes[kMaxDims];
  int64_t strides[kMaxDims];

  Layout(int dims_, const int64_t* sizes_) : dims(dims_) {
    for (int d = dims - 1; d >= 0; --d) {
      sizes[d] = sizes_[d];
      strides[d] = count;
      if (__builtin_mul_overflow(count, sizes[d], &count) || count > kMostElements) {
        refuse("input", "have, broadcast with the others, at most 2^60 elements",
               "the shape is " + text_of(dims, sizes_));
      }
    }
  }

  Layout(const View& like, int dims_, const int64_t* sizes_) : Layout(dims_, sizes_) {
    if (like.dims == dims && std::equal(sizes_, sizes_ + dims, like.sizes) && is_dense(like)) {
      for (int d = 0; d < dims; ++d) strides[d] = like.strides[d];
    }
  }
};

inline Tensor empty_strided(const Layout& layout, ScalarType dtype, int32_t device_type, int32_t device) {
  AtenTensorHandle handle;
  FUSED_LOSSES_CHECK(aoti_torch_empty_strided(layout.dims, layout.sizes, layout.strides, static_cast<int32_t>(dtype),
                                              device_type, device, &handle));
  return Tensor(handle);
}

// The order in which the elements of operands that are broadcast against each other are visited, and the operands as
// the iteration in this order sees them.
class BroadcastOrder {
 public:
  // `input`, one of the operands, decides the order: the one in which it lies in memory, where it is dense. Factors
  // broadcast to the shape that the operands have together. Any but the input may be null.
  BroadcastOrder(const View& input, std::initializer_list<const View*> operands,
                 std::initializer_list<const View*> factors = {})
      : layout_(input, broadcast(operands, factors), sizes_) {
    for (int d = 0; d < layout_.dims; ++d) order_[d] = d;
    std::stable_sort(order_, order_ + layout_.dims,
                     [&](int a, int b) { return layout_.strides[a] > layout_.strides[b]; });
    // Merges a dimension into the one before it if every operand steps through both as through one.
    iteration_.count = layout_.count;
    int last = -1;
    for (int k = 0; k < layout_.dims; ++k) {
      const int d = order_[k];
      if (layout_.sizes[d] == 1 && layout_.dims > 1) continue;
      bool merge = last >= 0;
      const auto look = [&](const View* view) {
        merge = merge && (!view || stride(*view, ends_[last]) == stride(*view, d) * layout_.sizes[d]);
      };
      std::for_each(operands.begin(), operands.end(), look);
      std::for_each(factors.begin(), factors.end(), look);
      if (merge) {
        iteration_.sizes[last] *= layout_.sizes[d];
      } else {
        if (++last == kLoopDims) refuse(input, "have at most 8 dimensions that operands do not walk as one");
        iteration_.sizes[last] = layout_.sizes[d];
      }
      ends_[last] = d;
    }
    iteration_.dims = last + 1;
  }

  const Iteration& iteration() const { return iteration_; }
  const Layout& layout() const { return layout_; }

  Operand operand(const View& view) const {
    Operand result;
    result.data = view.data;
    result.dtype = view.dtype;
    for (int k = 0; k < iteration_.dims; ++k) result.strides[k] = stride(view, ends_[k]);
    result.contiguous = is_contiguous(result.strides, iteration_);
    return result;
  }

 private:
  int broadcast(std::initializer_list<const View*> operands, std::initializer_list<const View*> factors) {
    for (const View* operand : operands) {
      if (operand) dims_ = std::max(dims_, operand->dims);
    }
    std::fill_n(sizes_, dims_, 1);
    for (const View* operand : operands) {
      if (operand) extend(*operand);
    }
    for (const View* factor : factors) {
      if (factor) check_spans(*factor);
    }
    return dims_;
  }

  void extend(const View& operand) {
    int64_t* const sizes = sizes_ + (dims_ - operand.dims);
    for (int d = 0; d < operand.dims; ++d) {
      if (operand.sizes[d] == 1 || operand.sizes[d] == sizes[d]) continue;
      if (sizes[d] != 1) refuse(operand, "broadcast with shape " + text_of(dims_, sizes_) + " of those before it");
      sizes[d] = operand.sizes[d];
    }
  }

  void check_spans(const View& factor) const {
    const int64_t* const sizes = sizes_ + (dims_ - factor.dims);
    bool spans = factor.dims <= dims_;
    for (int d = 0; spans && d < factor.dims; ++d) spans = factor.sizes[d] == 1 || factor.sizes[d] == sizes[d];
    if (!spans) refuse(factor, "broadcast to shape " + text_of(dims_, sizes_));
  }

  int64_t stride(const View& view, int d) const {
    const int own = d - (dims_ - view.dims);
    return own < 0 || (view.sizes[own] == 1 && sizes_[d] != 1) ? 0 : view.strides[own];
  }

  int dims_ = 0;
  int64_t sizes_[kMaxDims];
  Layout layout_;
  int order_[kMaxDims];
  int ends_[kLoopDims];  // for each dimension of the iteration, the innermost of those that were merged into it
  Iteration iteration_;
};

}  // namespace fused_losses
