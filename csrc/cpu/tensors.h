// Making CPU tensors.
#pragma once

#include "../tensor.h"
#include "gather.h"
#include "memory.h"

namespace fused_losses {

inline Tensor empty(const Layout& layout, ScalarType dtype) {
  const size_t bytes = static_cast<size_t>(layout.count) * with_storage(dtype, [](auto s) { return sizeof(s); });
  if (bytes >= kPooledBytes) {
    return torch::stable::from_blob(pool_allocate(bytes), {layout.sizes, static_cast<size_t>(layout.dims)},
                                    {layout.strides, static_cast<size_t>(layout.dims)},
                                    torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype, pool_free);
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(layout.dims, layout.sizes, layout.strides,
                                                         static_cast<int32_t>(dtype), aoti_torch_device_type_cpu(), 0,
                                                         &handle));
  return Tensor(handle);
}

inline Tensor scalar(double value, ScalarType dtype) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(0, nullptr, nullptr, static_cast<int32_t>(dtype),
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  Tensor result(handle);
  with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    *static_cast<S*>(result.data_ptr()) = static_cast<S>(static_cast<Compute<S>>(value));
  });
  return result;
}

// The value of a one-element floating point tensor.
inline double item(const Tensor& tensor) {
  return with_storage(tensor.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    return static_cast<double>(static_cast<Compute<S>>(*static_cast<const S*>(tensor.data_ptr())));
  });
}

}  // namespace fused_losses
