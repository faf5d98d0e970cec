// The floating point types that elements are stored in, and the type that arithmetic on them is done in.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <stdexcept>
#include <type_traits>

#include "host_device.h"

namespace fused_losses {

using ScalarType = torch::headeronly::ScalarType;
using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;

// The type of arithmetic on elements of type S: double for double, float for float, bfloat16 and half.
template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class S>
constexpr ScalarType kScalarType = std::is_same_v<S, float>      ? ScalarType::Float
                                   : std::is_same_v<S, double>   ? ScalarType::Double
                                   : std::is_same_v<S, BFloat16> ? ScalarType::BFloat16
                                                                 : ScalarType::Half;

// Calls body(S{}) for the storage type S that dtype names, and returns what that returns. Throws for any dtype but the
// four. On a GPU, which cannot throw, the host must have looked: there, any other is read as float32.
template <class Body>
FUSED_LOSSES_HOST_DEVICE inline auto with_storage(ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Double: return body(double{});
    case ScalarType::BFloat16: return body(BFloat16{});
    case ScalarType::Half: return body(Half{});
#if defined(__CUDA_ARCH__)
    default: return body(float{});
#else
    case ScalarType::Float: return body(float{});
    default: throw std::runtime_error("fused_losses: expected a floating point tensor");
#endif
  }
}

// Element i of an array whose dtype is known at run time only, as a T.
template <class T>
FUSED_LOSSES_HOST_DEVICE inline T load_as(const void* data, ScalarType dtype, int64_t i) {
  return with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    return static_cast<T>(static_cast<Compute<S>>(static_cast<const S*>(data)[i]));
  });
}

// Stores a value as element i of such an array, rounded to its dtype by way of the dtype's compute type.
template <class T>
FUSED_LOSSES_HOST_DEVICE inline void store_as(void* data, ScalarType dtype, int64_t i, T value) {
  with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    static_cast<S*>(data)[i] = static_cast<S>(static_cast<Compute<S>>(value));
  });
}

}  // namespace fused_losses
