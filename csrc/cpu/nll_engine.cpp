// The negative log-likelihood of ready log-probabilities, and what the mean of class losses divides by.
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "labels.h"
#include "softmax_engine.h"
#include "parallel.h"

namespace fused_losses {
namespace {

// Adds up body(run) over all positions in a fixed order, in blocks of about kStretch elements; a position has
// `elements` of them.
template <class Body>
double sum_over_runs(const CrossEntropyArguments& arguments, int64_t elements, const Body& body) {
  const int64_t positions = arguments.outer * arguments.inner;
  const int64_t in_block = std::max<int64_t>(1, kStretch / elements);
  const int64_t blocks = (positions + in_block - 1) / in_block;
  std::vector<double> sums(blocks);
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      Sum sum;
      for_each_run(arguments, block * in_block, std::min(positions, (block + 1) * in_block),
                   [&](const LabelRun& run) { sum += body(run); });
      sums[block] = sum.value();
    }
    finish_streaming();
  });
  return sum_of(sums);
}

// Names the first label that is no class.
[[noreturn]] void throw_out_of_bounds(const CrossEntropyArguments& arguments) {
  for_each_run(arguments, 0, arguments.outer * arguments.inner, [&](const LabelRun& run) {
    int64_t labels[kChunk];
    read_labels(arguments, run, labels);
    for (int64_t i = 0; i < run.count(); ++i) {
      if (labels[i] == arguments.ignore_index || (labels[i] >= 0 && labels[i] < arguments.classes)) continue;
      throw std::out_of_range("Target " + std::to_string(labels[i]) + " is out of bounds.");
    }
  });
  throw std::logic_error("fused_losses: the target changed while it was read");
}

template <class S>
class NLL {
  using T = Compute<S>;

 public:
  explicit NLL(const CrossEntropyArguments& arguments)
      : arguments_(arguments),
        targets_(arguments),
        streams_(is_streamed(arguments.input_gradient.data,
                             arguments.outer * arguments.inner * arguments.classes * static_cast<int64_t>(sizeof(S)),
                             arguments.input.data)) {}

  double run() const {
    return sum_over_runs(arguments_, arguments_.classes, [&](const LabelRun& run) {
      int64_t labels[kChunk];
      read_labels(arguments_, run, labels);
      // Before the gradient may overwrite the input.
      const double sum = arguments_.backward ? 0 : values(run, labels);
      if (arguments_.input_gradient.data) differentiate(run, labels);
      return sum;
    });
  }

 private:
  double values(const LabelRun& run, const int64_t* labels) const {
    const ClassStrides& strides = arguments_.input.strides;
    const S* const x = at<S>(arguments_, arguments_.input, run.outer, run.begin);
    // Fetched first: loads that wait for nothing but memory overlap.
    T picked[kChunk];
    for (int64_t i = 0; i < run.count(); ++i) {
      const int64_t label = labels[i] == arguments_.ignore_index ? 0 : labels[i];
      picked[i] = static_cast<T>(x[i * strides.inner + label * strides.classes]);
    }
    Sum sum;
    for (int64_t i = 0; i < run.count(); ++i) {
      const bool ignored = labels[i] == arguments_.ignore_index;
      const double value = ignored ? 0 : -targets_.weight(labels[i]) * picked[i];
      if (arguments_.losses.data) store_loss(arguments_, run.position + i, value);
      sum += value;
    }
    return sum.value();
  }

  // All zeros, but for each position's label.
  void differentiate(const LabelRun& run, const int64_t* labels) const {
    const ClassStrides& strides = arguments_.input_gradient.strides;
    const int64_t classes = arguments_.classes, count = run.count();
    S* const gradient = const_cast<S*>(at<S>(arguments_, arguments_.input_gradient, run.outer, run.begin));
    if (strides.classes == 1 && (count == 1 || strides.inner == classes)) {
      write(gradient, 1, count * classes, 0, run, labels, {classes, 1});
    } else if (strides.inner == 1) {
      write(gradient, classes, count, strides.classes, run, labels, {1, count});
    } else {
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t c = 0; c < classes; ++c) gradient[i * strides.inner + c * strides.classes] = S(0);
      }
      mark(gradient, run, labels, {strides.inner, strides.classes});
    }
  }

  // Of positions, and of classes.
  struct Steps {
    int64_t position, label;
  };

  // A gradient of `lines` times `length` elements, the lines `stride` apart. What is to be streamed is made in
  // cache first, unless it is one position with too many classes for that: there, one element is written twice.
  void write(S* gradient, int64_t lines, int64_t length, int64_t stride, const LabelRun& run, const int64_t* labels,
             Steps steps) const {
    alignas(64) S tile[kStretch];
    const bool tiled = streams_ && lines * length <= kStretch;
    if (tiled) {
      std::memset(static_cast<void*>(tile), 0, lines * length * sizeof(S));
      mark(tile, run, labels, steps);
    }
    for (int64_t line = 0; line < lines; ++line) {
      S* const to = gradient + line * stride;
      if (streams_) {
        stream(to, tiled ? tile + line * length : nullptr, length);
      } else {
        std::memset(static_cast<void*>(to), 0, length * sizeof(S));
      }
    }
    if (!tiled) mark(gradient, run, labels, {steps.position, lines > 1 ? stride : steps.label});
  }

  // Zeros, if there is nothing to write.
  static void stream(S* to, const S* from, int64_t n) {
    constexpr int64_t lanes = kLanes<T>;
    int64_t i = 0;
    for (; i < n && !is_aligned(to + i); ++i) to[i] = from ? from[i] : S(0);
    for (; i + lanes <= n; i += lanes) store_streaming(to + i, from ? load(from + i) : Vector<T>{});
    for (; i < n; ++i) to[i] = from ? from[i] : S(0);
  }

  void mark(S* gradient, const LabelRun& run, const int64_t* labels, Steps steps) const {
    for (int64_t i = 0; i < run.count(); ++i) {
      if (labels[i] == arguments_.ignore_index) continue;
      const double upstream = upstream_of(arguments_, run.outer, run.begin + i);
      const double slope = -targets_.weight(labels[i]) * arguments_.scale * upstream;
      gradient[i * steps.position + labels[i] * steps.label] = static_cast<S>(static_cast<T>(slope));
    }
  }

  const CrossEntropyArguments& arguments_;
  const Targets<T> targets_;
  const bool streams_;
};

}  // namespace

double cross_entropy_divisor(const CrossEntropyArguments& arguments) {
  if (!arguments.labels.data) return static_cast<double>(arguments.outer * arguments.inner);
  const Targets<double> targets(arguments);
  std::atomic<bool> all_in_bounds{true};  // an exception may not leave a parallel region
  const double divisor = sum_over_runs(arguments, 1, [&](const LabelRun& run) {
    int64_t labels[kChunk];
    read_labels(arguments, run, labels);
    int64_t kept = 0;
    bool all_good = true;
    for (int64_t i = 0; i < run.count(); ++i) {
      const bool counts = labels[i] != arguments.ignore_index;
      const bool good = static_cast<uint64_t>(labels[i]) < static_cast<uint64_t>(arguments.classes);
      kept += counts;
      all_good &= good | !counts;
    }
    if (!all_good) all_in_bounds = false;
    if (!all_good || targets.weights.empty()) return static_cast<double>(kept);
    Sum sum;
    for (int64_t i = 0; i < run.count(); ++i) {
      if (labels[i] != arguments.ignore_index) sum += targets.weights[labels[i]];
    }
    return sum.value();
  });
  if (!all_in_bounds) throw_out_of_bounds(arguments);
  return divisor;
}

double nll(const CrossEntropyArguments& arguments) {
  return with_storage(arguments.input.dtype, [&](auto storage) { return NLL<decltype(storage)>(arguments).run(); });
}

}  // namespace fused_losses
