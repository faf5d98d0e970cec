// Making tensors on the CPU.
#include "tensors.h"

#include "memory.h"

namespace fused_losses {
namespace {

Tensor empty_from_pool(void* memory, size_t bytes, const Layout& layout, ScalarType dtype) {
  const auto give_back = [](void* data, void* size) { pool_free(data, reinterpret_cast<size_t>(size)); };
  AtenTensorHandle handle;
  FUSED_LOSSES_CHECK(torch_from_blob(memory, layout.dims, layout.sizes, layout.strides, 0, static_cast<int32_t>(dtype),
                                     aoti_torch_device_type_cpu(), -1, &handle, aoti_torch_layout_strided(), nullptr, 0,
                                     give_back, reinterpret_cast<void*>(bytes)));
  return Tensor(handle);
}

// By torch's allocator. What the pool holds may be what there is no memory for.
Tensor empty_from_torch(size_t bytes, const Layout& layout, ScalarType dtype) {
  AtenTensorHandle handle;
  const auto fails = [&] {
    return aoti_torch_empty_strided(layout.dims, layout.sizes, layout.strides, static_cast<int32_t>(dtype),
                                    aoti_torch_device_type_cpu(), 0, &handle) != AOTI_TORCH_SUCCESS;
  };
  if (fails()) {
    pool_release();
    // What torch says is not in the ABI of every version.
    if (fails()) {
      throw std::runtime_error(std::string(kNoMemory) + ": you tried to allocate " + std::to_string(bytes) +
                               " bytes. Error code 12 (Cannot allocate memory)");
    }
  }
  return Tensor(handle);
}

}  // namespace

Tensor empty(const Layout& layout, ScalarType dtype) {
  const size_t width =
      dtype == ScalarType::Long ? sizeof(int64_t) : with_storage(dtype, [](auto s) { return sizeof(s); });
  const size_t bytes = static_cast<size_t>(layout.count) * width;
  if (bytes < kPooledBytes) return empty_from_torch(bytes, layout, dtype);
  if (void* const memory = pool_allocate(bytes)) return empty_from_pool(memory, bytes, layout, dtype);
  const Tensor tensor = empty_from_torch(bytes, layout, dtype);
  advise_huge_pages(tensor.data_ptr(), bytes);
  return tensor;
}

}  // namespace fused_losses
