// A tensor as the operators see it: what it is called, what it is, and where its elements lie; and the checks that it
// is what it must be. Each refuses the operator's call; see refusal.h.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>

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

  // A tensor that an operator has made itself.
  explicit View(const Tensor& tensor)
      : name("a result"),
        data(tensor.data_ptr()),
        dtype(tensor.scalar_type()),
        dims(static_cast<int>(tensor.dim())),
        count(tensor.numel()),
        sizes(tensor.sizes().data()),
        strides(tensor.strides().data()) {}

  // An argument of an operator.
  View(const Tensor& tensor, const char* name_) : View(tensor) {
    name = name_;
    if (dims > kMaxDims) refuse(name, "have at most " + std::to_string(kMaxDims) + " dimensions", "it is " + text());
    if (count > 0) check_storage(tensor);
  }

  // "float32 of shape (6, 10)"
  std::string text() const { return text_of(dtype) + " of shape " + text_of(dims + hidden_dims, sizes); }

 private:
  // The bytes of an element. Those of the usual dtypes are known without a call.
  int64_t width() const {
    switch (dtype) {
      case ScalarType::Double:
      case ScalarType::Long: return 8;
      case ScalarType::Float: return 4;
      case ScalarType::BFloat16:
      case ScalarType::Half: return 2;
      default: return static_cast<int64_t>(aoti_torch_dtype_element_size(static_cast<int32_t>(dtype)));
    }
  }

  // Whoever resizes a storage does not ask the tensors that lie in it.
  void check_storage(const Tensor& tensor) {
    int64_t offset = 0, available = 0;
    FUSED_LOSSES_CHECK(aoti_torch_get_storage_offset(tensor.get(), &offset));
    FUSED_LOSSES_CHECK(aoti_torch_get_storage_size(tensor.get(), &available));
    int64_t elements = 1, end = 0;
    bool overflows = false;
    for (int d = 0; d < dims; ++d) {
      int64_t reach = 0;
      overflows |= __builtin_mul_overflow(sizes[d] - 1, strides[d], &reach);
      overflows |= __builtin_add_overflow(elements, reach, &elements);
    }
    overflows |= __builtin_mul_overflow(elements, width(), &bytes);
    overflows |= __builtin_add_overflow(bytes, offset * width(), &end);
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

// What torch says of its own operators that write to what they read.
inline constexpr const char* kOverlap =
    "unsupported operation: some elements of the input tensor and the written-to tensor refer to a single memory "
    "location. Please clone() the tensor before performing the operation.";

// `view`, which is read or written, and `written`, which is written to. Torch lets pass what it cannot tell, such as
// views that take every other element; as a silent result would be wrong, this refuses it.
inline void check_disjoint(const View& view, const View& written) {
  if (!shares_memory(view, written)) return;
  const bool is_alike = view.name == written.name;
  refuse(view.name, std::string("share no memory with ") + (is_alike ? "another one" : written.name),
         "it does, and " + std::string(is_alike ? "both are" : "that is") + " written to: " + kOverlap);
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

}  // namespace fused_losses
