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

#include "refusal.h"
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

// A tensor's data, looked up once: each look is a call through the C interface.
struct View {
  const char* name;  // of the operator's argument
  void* data;
  ScalarType dtype;
  int dims;
  int64_t count;
  const int64_t* sizes;
  const int64_t* strides;
  int64_t bytes = 0;    // from the first element's begin to the last one's end
  int hidden_dims = 0;  // after the others, and not counted by `dims`

  View(const Tensor& tensor, const char* name_)
      : name(name_),
        data(tensor.data_ptr()),
        dtype(tensor.scalar_type()),
        dims(static_cast<int>(tensor.dim())),
        count(tensor.numel()),
        sizes(tensor.sizes().data()),
        strides(tensor.strides().data()) {
    if (dims > kMaxDims) refuse(name, "have at most " + std::to_string(kMaxDims) + " dimensions", "it is " + text());
    if (count > 0) check_storage(tensor);
  }

  // "float32 of shape (6, 10)"
  std::string text() const { return text_of(dtype) + " of shape " + text_of(dims + hidden_dims, sizes); }

 private:
  // Whoever resizes a storage does not ask the tensors that lie in it.
  void check_storage(const Tensor& tensor) {
    int64_t offset = 0, available = 0;
    FUSED_LOSSES_CHECK(aoti_torch_get_storage_offset(tensor.get(), &offset));
    FUSED_LOSSES_CHECK(aoti_torch_get_storage_size(tensor.get(), &available));
    const auto width = static_cast<int64_t>(aoti_torch_dtype_element_size(static_cast<int32_t>(dtype)));
    int64_t elements = 1, end = 0;
    bool overflows = false;
    for (int d = 0; d < dims; ++d) {
      int64_t reach = 0;
      overflows |= __builtin_mul_overflow(sizes[d] - 1, strides[d], &reach);
      overflows |= __builtin_add_overflow(elements, reach, &elements);
    }
    overflows |= __builtin_mul_overflow(elements, width, &bytes);
    overflows |= __builtin_add_overflow(bytes, offset * width, &end);
    if (overflows || end > available) {
      refuse(name, "lie within its storage",
             "it is " + text() + " in a storage of " + std::to_string(available) + " bytes");
    }
  }
};

[[noreturn, gnu::cold]] inline void refuse(const View& view, const std::string& expected) {
  refuse(view.name, expected, "it is " + view.text());
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Half;
}

inline constexpr const char* kFloatingDtypes = "float32, float64, bfloat16 or float16";

inline void check_floating(const View& view) {
  if (!is_floating(view.dtype)) refuse(view, std::string("be ") + kFloatingDtypes);
}

inline void check_sizes(const View& view, int dims, const int64_t* sizes) {
  if (view.dims != dims || !std::equal(sizes, sizes + dims, view.sizes)) {
    refuse(view, "have shape " + text_of(dims, sizes));
  }
}

// Whether some byte may belong to both.
inline bool shares_memory(const View& a, const View& b) {
  if (a.count == 0 || b.count == 0) return false;
  const auto *a_begin = static_cast<const char*>(a.data), *b_begin = static_cast<const char*>(b.data);
  return a_begin < b_begin + b.bytes && b_begin < a_begin + a.bytes;
}

// `view`, which is read or written, and `written`, which is written to.
inline void check_disjoint(const View& view, const View& written) {
  if (!shares_memory(view, written)) return;
  const bool is_alike = view.name == written.name;
  refuse(view.name, std::string("share no memory with ") + (is_alike ? "another one" : written.name),
         "it does, and " + std::string(is_alike ? "both are" : "that is") + " written to");
}

inline std::string text_of(const torch::stable::Device& device) {
  using torch::headeronly::DeviceType;
  if (device.is_cpu()) return "cpu";
  if (device.type() == DeviceType::Meta) return "meta";
  const std::string kind = device.is_cuda() ? "cuda" : "type " + std::to_string(static_cast<int>(device.type()));
  return kind + ":" + std::to_string(device.index());
}

// Where a tensor is due, Python may give None.
inline void check_defined(const Tensor& tensor, const char* name) {
  if (!tensor.defined()) refuse(name, "be a tensor", "it is None");
}

// The dispatcher looks at the device of one tensor alone.
inline void check_device(const Tensor& tensor, const char* name, const Tensor& other, const char* other_name) {
  check_defined(tensor, name);
  const auto device = tensor.device(), expected = other.device();
  // There is one CPU, with or without a number.
  if (device == expected || (device.is_cpu() && expected.is_cpu())) return;
  refuse(name, std::string("be on the same device as ") + other_name + ", " + text_of(expected),
         "it is on " + text_of(device));
}

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

// Decides in which order the elements of broadcast operands are visited, and describes operands in it.
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
    // Merge a dimension into the one before it where every operand steps through both as through one.
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
    result.contiguous =
        iteration_.dims == 0 || (iteration_.dims == 1 && (result.strides[0] == 1 || iteration_.count == 1));
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
  int ends_[kLoopDims];  // the innermost of the dimensions merged into each one of the iteration
  Iteration iteration_;
};

}  // namespace fused_losses
