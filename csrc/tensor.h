// From tensors to what kernels see, and back. With cpu/tensors.h, the only header that knows tensors.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "views.h"

// Where a call of torch's C interface fails, this throws. From 2.14 on, torch's headers can put its own words into the
// message ("CUDA out of memory ..."), whatever the ABI compiled for; before, the message names the call alone.
#if defined(STABLE_TORCH_ERROR_CODE_CHECK)
#define FUSED_LOSSES_CHECK(call) STABLE_TORCH_ERROR_CODE_CHECK(call)
#else
#define FUSED_LOSSES_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace fused_losses {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Anyone may call an operator; the dispatcher looks at one tensor's device alone.
template <class... Arguments>
void check_devices(const Tensor& first, const Arguments&... others) {
  const auto device = first.device();
  const auto check = [&](const Tensor& tensor) {
    const auto other = tensor.device();
    // There is one CPU, with or without a number.
    if (other == device || (other.is_cpu() && device.is_cpu())) return;
    throw std::runtime_error("Expected all tensors to be on the same device, but found at least two devices");
  };
  const auto look = [&]<class T>(const T& other) {
    if constexpr (std::is_same_v<T, Tensor>) {
      check(other);
    } else if constexpr (std::is_same_v<T, OptionalTensor>) {
      if (other) check(*other);
    } else if constexpr (std::is_same_v<T, std::vector<Tensor>>) {
      for (const Tensor& tensor : other) check(tensor);
    }
  };
  (look(others), ...);
}

// A tensor's data, looked up once: each look is a call through the C interface.
struct View {
  void* data;
  ScalarType dtype;
  int dims;
  int64_t count;
  const int64_t* sizes;
  const int64_t* strides;

  explicit View(const Tensor& tensor)
      : data(tensor.data_ptr()),
        dtype(tensor.scalar_type()),
        dims(static_cast<int>(tensor.dim())),
        count(tensor.numel()),
        sizes(tensor.sizes().data()),
        strides(tensor.strides().data()) {
    if (dims > kMaxDims) throw std::runtime_error("fused_losses: tensors may have at most 64 dimensions");
  }
};

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

// Sizes and strides of a result: contiguous, unless it can have the layout of `like`, where that is dense.
struct Layout {
  int dims;
  int64_t count = 1;
  int64_t sizes[kMaxDims];
  int64_t strides[kMaxDims];

  Layout(int dims_, const int64_t* sizes_) : dims(dims_) {
    for (int d = dims - 1; d >= 0; --d) {
      sizes[d] = sizes_[d];
      strides[d] = count;
      count *= sizes[d];
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

// Decides in which order the elements of broadcast operands are visited, and describes operands in it.
class BroadcastOrder {
 public:
  // `input` decides the order: the one in which it lies in memory, where it is dense.
  BroadcastOrder(const View& input, std::initializer_list<const View*> operands)
      : layout_(input, broadcast(input, operands), sizes_) {
    for (int d = 0; d < layout_.dims; ++d) order_[d] = d;
    std::stable_sort(order_, order_ + layout_.dims,
                     [&](int a, int b) { return layout_.strides[a] > layout_.strides[b]; });
    // Merge a dimension into the one before it where every operand steps through both as through one.
    iteration_.count = layout_.count;
    int last = -1;
    for (int k = 0; k < layout_.dims; ++k) {
      const int d = order_[k];
      if (layout_.sizes[d] == 1 && layout_.dims > 1) continue;
      bool merge = last >= 0;
      for (const View* operand : operands) {
        if (merge && operand) {
          merge = stride(*operand, ends_[last]) == stride(*operand, d) * layout_.sizes[d];
        }
      }
      if (merge) {
        iteration_.sizes[last] *= layout_.sizes[d];
      } else {
        check_loop_dims(++last + 1);
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
    result.contiguous =
        iteration_.dims == 0 || (iteration_.dims == 1 && (result.strides[0] == 1 || iteration_.count == 1));
    return result;
  }

 private:
  int broadcast(const View& input, std::initializer_list<const View*> operands) {
    int dims = input.dims;
    for (const View* operand : operands) {
      if (operand) dims = std::max(dims, operand->dims);
    }
    dims_ = dims;
    for (int d = 0; d < dims; ++d) {
      sizes_[d] = 1;
      for (const View* operand : operands) {
        if (!operand || d < dims - operand->dims) continue;
        const int64_t size = operand->sizes[d - (dims - operand->dims)];
        if (size == 1) continue;
        if (sizes_[d] != 1 && sizes_[d] != size) {
          throw std::runtime_error("The size of tensor a (" + std::to_string(sizes_[d]) +
                                   ") must match the size of tensor b (" + std::to_string(size) +
                                   ") at non-singleton dimension " + std::to_string(d));
        }
        sizes_[d] = size;
      }
    }
    return dims;
  }

  int64_t stride(const View& view, int d) const {
    const int own = d - (dims_ - view.dims);
    return own < 0 || (view.sizes[own] == 1 && sizes_[d] != 1) ? 0 : view.strides[own];
  }

  int dims_ = 0;
  int64_t sizes_[kMaxDims];
  Layout layout_;
  int order_[kMaxDims];
  int ends_[kLoopDims];  // the innermost of the dimensions merged into each one of the iteration
  Iteration iteration_;
};

}  // namespace fused_losses
