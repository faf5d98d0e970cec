// The engine of the negative log-likelihood on the CPU, whose input holds log-probabilities already.
//
// Reading order: nll() at the end; NLL::run(), which walks positions run by run (labels.h); values(), which reads one
// element of each position; differentiate(), whose gradient is 0 but for one element of each position.
#include <cstring>

#include "labels.h"
#include "softmax_engine.h"

namespace fused_losses {
namespace {

template <class S>
class NLL {
  using T = Compute<S>;

 public:
  explicit NLL(const SoftmaxArguments& arguments)
      : arguments_(arguments),
        targets_(arguments),
        streams_(is_streamed(arguments.input_gradient.data,
                             arguments.outer * arguments.inner * arguments.classes * static_cast<int64_t>(sizeof(S)),
                             arguments.input.data)) {}

  double run() const {
    return sum_over_position_runs(arguments_, arguments_.classes, [&](const PositionRun& run) {
      int64_t labels[kChunk];
      read_labels(arguments_, run, labels);
      // Read before the gradient is written, which may overwrite the input.
      const double sum = arguments_.backward ? 0 : values(run, labels);
      if (arguments_.input_gradient.data) differentiate(run, labels);
      return sum;
    });
  }

 private:
  double values(const PositionRun& run, const int64_t* labels) const {
    const ClassStrides& strides = arguments_.input.strides;
    const S* const x = at<S>(arguments_, arguments_.input, run.outer, run.begin);
    // All elements are fetched before any is used, so that their cache misses overlap.
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

  // Writes the gradient of a run: zeros, and the slope at each position's label.
  void differentiate(const PositionRun& run, const int64_t* labels) const {
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

  // How far apart, in elements, two neighbouring positions are, and two neighbouring classes.
  struct Steps {
    int64_t position, label;
  };

  // Writes a gradient that lies as `lines` lines of `length` elements, `stride` apart. Before it is streamed, it is
  // made in cache, so that each element is written once; if it is too large for that, which a single position of many
  // classes may be, zeros are streamed, and the label's element is written again. `steps` says where in the tile
  // elements are.
  void write(S* gradient, int64_t lines, int64_t length, int64_t stride, const PositionRun& run, const int64_t* labels,
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

  // Streams n elements, or zeros if `from` is null.
  static void stream(S* to, const S* from, int64_t n) {
    constexpr int64_t lanes = kLanes<T>;
    int64_t i = 0;
    for (; i < n && !is_aligned(to + i); ++i) to[i] = from ? from[i] : S(0);
    for (; i + lanes <= n; i += lanes) store_streaming(to + i, from ? load(from + i) : Vector<T>{});
    for (; i < n; ++i) to[i] = from ? from[i] : S(0);
  }

  // Writes the slopes at the labels of a run.
  void mark(S* gradient, const PositionRun& run, const int64_t* labels, Steps steps) const {
    for (int64_t i = 0; i < run.count(); ++i) {
      if (labels[i] == arguments_.ignore_index) continue;
      const double upstream = upstream_of(arguments_, run.outer, run.begin + i);
      const double slope = -targets_.weight(labels[i]) * arguments_.scale * upstream;
      gradient[i * steps.position + labels[i] * steps.label] = static_cast<S>(static_cast<T>(slope));
    }
  }

  const SoftmaxArguments& arguments_;
  const Targets<T> targets_;
  const bool streams_;
};

}  // namespace

double nll(const SoftmaxArguments& arguments) {
  return with_storage(arguments.input.dtype, [&](auto storage) { return NLL<decltype(storage)>(arguments).run(); });
}

}  // namespace fused_losses
