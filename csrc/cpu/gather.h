// From operands of any dtype and strides to arrays that vector loops can read, and back; a chunk at a time.
#pragma once

#include <cstring>

#include "../views.h"
#include "storage.h"

namespace fused_losses {

// Elements that are gathered at a time: 4 KiB of float32. The seven buffers and two factors of the pointwise engine are
// 36 KiB of it, and fit into a first-level cache of 48 KiB.
inline constexpr int64_t kChunk = 1024;

// Copies n elements that are `stride` apart to consecutive elements of type T; and below, the other way round.
template <class T, class S>
inline void gather_run(T* to, const S* from, int64_t stride, int64_t n) {
  if (stride == 1) {
    if constexpr (std::is_same_v<T, S>) {
      std::memcpy(static_cast<void*>(to), from, n * sizeof(T));
    } else {
      convert(to, from, n);
    }
  } else if (stride == 0) {
    const T value = static_cast<T>(static_cast<Compute<S>>(*from));
    for (int64_t i = 0; i < n; ++i) to[i] = value;
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(static_cast<Compute<S>>(from[i * stride]));
  }
}

template <class T, class S>
inline void scatter_run(S* to, int64_t stride, const T* from, int64_t n) {
  if (stride == 1) {
    convert(to, from, n);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * stride] = static_cast<S>(static_cast<Compute<S>>(from[i]));
  }
}

// Elements [begin, begin + n) of the operand as consecutive elements of type T: a pointer to where they lie, if they
// lie so, or to `buffer`, into which they are then gathered.
template <class T>
inline const T* gather(const Operand& operand, const Iteration& iteration, int64_t begin, int64_t n, T* buffer) {
  const int last = iteration.dims - 1;
  int64_t index[kLoopDims], offset = begin;
  bool is_run = operand.contiguous;
  if (!is_run) {
    offset = 0;
    for (int64_t rest = begin, d = last; d >= 0; --d) {
      index[d] = rest % iteration.sizes[d];
      rest /= iteration.sizes[d];
      offset += index[d] * operand.strides[d];
    }
    is_run = operand.strides[last] == 1 && index[last] + n <= iteration.sizes[last];
  }
  if (is_run && operand.dtype == kScalarType<T>) return static_cast<const T*>(operand.data) + offset;
  with_storage(operand.dtype, [&](auto storage) {
    using S = decltype(storage);
    const S* const data = static_cast<const S*>(operand.data);
    if (is_run) {
      convert(buffer, data + offset, n);
      return;
    }
    for (int64_t done = 0; done < n;) {
      const int64_t room = iteration.sizes[last] - index[last];
      const int64_t run = room < n - done ? room : n - done;
      gather_run(buffer + done, data + offset, operand.strides[last], run);
      done += run;
      index[last] += run;
      offset += run * operand.strides[last];
      for (int d = last; d > 0 && index[d] == iteration.sizes[d]; --d) {
        offset += operand.strides[d - 1] - index[d] * operand.strides[d];
        index[d] = 0;
        ++index[d - 1];
      }
    }
  });
  return buffer;
}

}  // namespace fused_losses
