// Walking the labels of positions, run by run: positions of one run differ in `inner` only.
#pragma once

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "softmax_targets.h"

namespace fused_losses {

// A run of positions: `inner` in [begin, end) of one `outer`; `position` is the first one's own number.
struct LabelRun {
  int64_t outer, begin, end, position;
  int64_t count() const { return end - begin; }
};

// The positions [begin, end), cut at the ends of outer dimensions and into runs of at most kChunk.
template <class Body>
void for_each_label_run(const SoftmaxArguments& arguments, int64_t begin, int64_t end, const Body& body) {
  while (begin < end) {
    const int64_t outer = begin / arguments.inner, inner = begin % arguments.inner;
    const int64_t count = std::min({end - begin, arguments.inner - inner, kChunk});
    body(LabelRun{outer, inner, inner + count, begin});
    begin += count;
  }
}

// The labels of a run, as int64.
inline void read_labels(const SoftmaxArguments& arguments, const LabelRun& run, int64_t* labels) {
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
double sum_over_label_runs(const SoftmaxArguments& arguments, int64_t elements, const Body& body) {
  const int64_t positions = arguments.outer * arguments.inner;
  const int64_t in_block = std::max<int64_t>(1, kStretch / elements);
  const int64_t blocks = (positions + in_block - 1) / in_block;
  std::vector<double> sums(blocks);
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      Sum sum;
      for_each_label_run(arguments, block * in_block, std::min(positions, (block + 1) * in_block),
                         [&](const LabelRun& run) { sum += body(run); });
      sums[block] = sum.value();
    }
    finish_streaming();
  });
  return sum_of(sums);
}

}  // namespace fused_losses
