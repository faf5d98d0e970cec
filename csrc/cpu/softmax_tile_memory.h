// Tiles of a softmax in memory and in cache. A tile is all classes of kPositions positions or fewer, converted to the
// type of arithmetic and with its positions side by side: element (class, position) is at class kPositions + position.
#pragma once

#include <algorithm>
#include <vector>

#include "labels.h"
#include "transpose.h"

namespace fused_losses {

// Positions of a tile: 256 bytes of float32 for each class, so that memory is read in runs of four cache lines.
inline constexpr int kPositions = 64;

// Asks for n elements that lie side by side.
template <class E>
void prefetch(const E* from, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(E);  // elements of a cache line
  for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(from + i);
}

// Asks for the logits and labels of a whole tile, from position `first` on, while another is in work: tiles are too
// short for the hardware to know their pattern. What does not lie side by side is left out.
template <class S>
void prefetch_tile(const SoftmaxArguments& arguments, int64_t first) {
  for_each_position_run(arguments, first, first + kPositions, [&](const PositionRun& run) {
    const ClassStrides& strides = arguments.input.strides;
    const S* const from = at<S>(arguments, arguments.input, run.outer, run.begin);
    if (strides.classes == 1 && strides.inner == arguments.classes) {
      prefetch(from, run.count() * arguments.classes);
    } else if (strides.inner == 1) {
      for (int64_t c = 0; c < arguments.classes; ++c) prefetch(from + c * strides.classes, run.count());
    }
    if (arguments.labels.data && arguments.labels.strides.inner == 1 && arguments.labels.dtype == ScalarType::Long) {
      prefetch(at<int64_t>(arguments, arguments.labels, run.outer, run.begin), run.count());
    }
  });
}

// Copies `count` positions, from number `first` on, into `buffer`, which is made large enough.
template <class T>
T* gather_tile(const SoftmaxArguments& arguments, const ClassTensor& tensor, int64_t first, int count,
               std::vector<T>& buffer) {
  const int64_t classes = arguments.classes;
  buffer.resize(classes * kPositions);
  with_storage(tensor.dtype, [&](auto storage) {
    using E = decltype(storage);
    if constexpr (std::is_same_v<Compute<E>, T>) {  // SoftmaxArguments says so
      for_each_position_run(arguments, first, first + count, [&](const PositionRun& run) {
        const E* const from = at<E>(arguments, tensor, run.outer, run.begin);
        T* const to = buffer.data() + run.position - first;
        if (tensor.strides.classes == 1 && tensor.strides.inner != 1) {
          return transpose_in(from, tensor.strides.inner, run.count(), classes, to, kPositions);
        }
        for (int64_t c = 0; c < classes; ++c) {
          gather_run(to + c * kPositions, from + c * tensor.strides.classes, tensor.strides.inner, run.count());
        }
      });
    }
  });
  return buffer.data();
}

// Writes a tile to a tensor, past the caches if it is `streamed`.
template <class T>
void scatter_tile(const SoftmaxArguments& arguments, const ClassTensor& tensor, int64_t first, int count, const T* tile,
                  bool streamed) {
  const int64_t classes = arguments.classes;
  with_storage(tensor.dtype, [&](auto storage) {
    using E = decltype(storage);
    if constexpr (std::is_same_v<Compute<E>, T>) {
      for_each_position_run(arguments, first, first + count, [&](const PositionRun& run) {
        E* const to = const_cast<E*>(at<E>(arguments, tensor, run.outer, run.begin));
        const T* const from = tile + run.position - first;
        if (tensor.strides.classes == 1 && tensor.strides.inner != 1) {
          return transpose_out(to, tensor.strides.inner, run.count(), classes, from, kPositions);
        }
        for (int64_t c = 0; c < classes; ++c) {
          E* const line = to + c * tensor.strides.classes;
          const T* const numbers = from + c * kPositions;
          if (streamed && tensor.strides.inner == 1 && is_aligned(line)) {
            for_each_register<T>(
                run.count(), [&](int64_t i, auto some) { store(line + i, load(numbers + i, some, 0), some, true); });
          } else {
            scatter_run(line, tensor.strides.inner, numbers, run.count());
          }
        }
      });
    }
  });
}

}  // namespace fused_losses
