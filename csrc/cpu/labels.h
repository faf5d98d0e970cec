// Walking positions and their labels run by run: the positions of a run differ in `inner` alone, so that a stride leads
// from one to the next.
#pragma once

#include <algorithm>

#include "blocks.h"
#include "softmax_targets.h"

namespace fused_losses {

// The positions (outer, begin) to (outer, end - 1); the first one's number is `position`.
struct PositionRun {
  int64_t outer, begin, end, position;
  int64_t count() const { return end - begin; }
};

// Calls body(run) for the positions [begin, end), cut where `inner` ends, and into runs of at most kChunk.
template <class Body>
void for_each_position_run(const SoftmaxArguments& arguments, int64_t begin, int64_t end, const Body& body) {
  while (begin < end) {
    const int64_t outer = begin / arguments.inner, inner = begin % arguments.inner;
    const int64_t count = std::min({end - begin, arguments.inner - inner, kChunk});
    body(PositionRun{outer, inner, inner + count, begin});
    begin += count;
  }
}

// Writes the labels of a run, int64 or uint8 in memory, to `labels`.
inline void read_labels(const SoftmaxArguments& arguments, const PositionRun& run, int64_t* labels) {
  const int64_t stride = arguments.labels.strides.inner;
  const auto copy = [&](auto type) {
    const auto* const from = at<decltype(type)>(arguments, arguments.labels, run.outer, run.begin);
    for (int64_t i = 0; i < run.count(); ++i) labels[i] = from[i * stride];
  };
  if (arguments.labels.dtype == ScalarType::Byte) {
    copy(uint8_t{});
  } else {
    copy(int64_t{});
  }
}

// The sum of body(run) over all positions. A position has `elements` elements, and a block about kStretch of them.
template <class Body>
double sum_over_position_runs(const SoftmaxArguments& arguments, int64_t elements, const Body& body) {
  return sum_over_blocks(arguments.outer * arguments.inner, items_per_block(elements), 1, [&] {
    return [&](int64_t begin, int64_t end) {
      Sum sum;
      for_each_position_run(arguments, begin, end, [&](const PositionRun& run) { sum += body(run); });
      return sum.value();
    };
  });
}

}  // namespace fused_losses
