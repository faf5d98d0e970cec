// Walking the labels of positions, run by run: positions of one run differ in `inner` only.
#pragma once

#include <algorithm>

#include "blocks.h"
#include "softmax_targets.h"

namespace fused_losses {

// A run of positions: `inner` in [begin, end) of one `outer`; `position` is the first one's own number.
struct PositionRun {
  int64_t outer, begin, end, position;
  int64_t count() const { return end - begin; }
};

// The positions [begin, end), cut at the ends of outer dimensions and into runs of at most kChunk.
template <class Body>
void for_each_position_run(const SoftmaxArguments& arguments, int64_t begin, int64_t end, const Body& body) {
  while (begin < end) {
    const int64_t outer = begin / arguments.inner, inner = begin % arguments.inner;
    const int64_t count = std::min({end - begin, arguments.inner - inner, kChunk});
    body(PositionRun{outer, inner, inner + count, begin});
    begin += count;
  }
}

// The labels of a run, as int64.
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

// Adds up body(run) over all positions in a fixed order, in blocks of about kStretch elements; a position has
// `elements` of them.
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
