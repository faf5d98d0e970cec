// Tiles of a softmax in memory. A tile is all classes of kPositions positions or fewer. It is worked on where it lies
// if its positions lie side by side; else it is gathered before the passes, and the gradient scattered after them.
#pragma once

#include <vector>

#include "gather.h"
#include "labels.h"

namespace fused_losses {

// Positions of a tile: 256 bytes of float32 for each class, so that memory is read in runs of four cache lines.
inline constexpr int kPositions = 64;

// A tile as the passes see it: class c of position p is data[c * stride + p].
template <class E>
struct TileView {
  E* data;
  int64_t stride;
  E* row(int64_t c) const { return data + c * stride; }
};

// Whether a tile can be worked on where it lies: it is whole, in one run, and its positions lie side by side.
template <class S>
bool lies_ready(const SoftmaxArguments& arguments, const ClassTensor& tensor, int64_t first, int count) {
  return count == kPositions && tensor.strides.inner == 1 && tensor.dtype == kScalarType<S> &&
         first % arguments.inner + count <= arguments.inner;
}

// Gathers `count` positions, from number `first` on, into `buffer`, [classes][kPositions].
template <class T>
TileView<T> gather_tile(const SoftmaxArguments& arguments, const ClassTensor& tensor, int64_t first, int count,
                        std::vector<T>& buffer) {
  buffer.resize(arguments.classes * kPositions);
  with_storage(tensor.dtype, [&](auto storage) {
    using E = decltype(storage);
    for_each_position_run(arguments, first, first + count, [&](const PositionRun& run) {
      const E* const from = at<E>(arguments, tensor, run.outer, run.begin);
      for (int64_t c = 0; c < arguments.classes; ++c) {
        gather_run(&buffer[c * kPositions + run.position - first], from + c * tensor.strides.classes,
                   tensor.strides.inner, run.count());
      }
    });
  });
  return {buffer.data(), kPositions};
}

// Writes such a buffer to a tensor.
template <class T>
void scatter_tile(const SoftmaxArguments& arguments, const ClassTensor& tensor, int64_t first, int count,
                  const std::vector<T>& buffer) {
  with_storage(tensor.dtype, [&](auto storage) {
    using E = decltype(storage);
    for_each_position_run(arguments, first, first + count, [&](const PositionRun& run) {
      E* const to = const_cast<E*>(at<E>(arguments, tensor, run.outer, run.begin));
      for (int64_t c = 0; c < arguments.classes; ++c) {
        scatter_run(to + c * tensor.strides.classes, tensor.strides.inner,
                    &buffer[c * kPositions + run.position - first], run.count());
      }
    });
  });
}

}  // namespace fused_losses
