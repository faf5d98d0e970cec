// The rows of the class margin engine. A row of one target, the usual case, is read once: the loop that adds up the
// values stores the gradient, too, but for the target's own element, which is known when the row is done. A row of
// several targets goes through the first-level cache chunk by chunk, and for each chunk the gaps to all targets are
// computed.
//
// Reading order: run() gives rows to threads; row() does one row, by row_of_one() or row_of_several().
#pragma once

#include <algorithm>
#include <vector>

#include "blocks.h"
#include "class_margin_engine.h"
#include "class_margin_loops.h"

namespace fused_losses {

// A row where it lies: class c is *at(c).
template <class S>
struct Strided {
  S* data;
  int64_t stride;

  S* at(int64_t c) const { return data + c * stride; }
};

template <class Formula, bool kGradient, class S>
class ClassMarginRows {
  using T = Compute<S>;

 public:
  explicit ClassMarginRows(const ClassMarginArguments& arguments)
      : arguments_(arguments),
        formula_{arguments.margin},
        classes_(arguments.classes),
        stretches_(stretches_of(classes_)),
        streams_(kGradient &&
                 is_streamed(arguments.gradient.data, arguments.rows * classes_ * static_cast<int64_t>(sizeof(S)),
                             arguments.input.data)) {}

  double run() const {
    const int64_t rows = arguments_.rows;
    if (threads_share_rows(rows, stretches_)) {
      Several several;
      Sum sum;
      for (int64_t r = 0; r < rows; ++r) sum += row(r, several, shared());
      finish_streaming();
      return sum.value();
    }
    return sum_over_blocks(rows, items_per_block(classes_), 1, [&] {
      return [this, several = Several()](int64_t begin, int64_t end) mutable {
        Sum sum;
        for (int64_t r = begin; r < end; ++r) sum += row(r, several, alone());
        return sum.value();
      };
    });
  }

 private:
  // The targets of a row that has several. A thread keeps this from row to row, for its memory.
  struct Several {
    std::vector<int64_t> targets;  // sorted
    std::vector<T> offsets;        // margin - score of each
    std::vector<double> slopes;    // of each, for each stretch
  };

  Strided<const S> input(int64_t r) const {
    const RowTensor& x = arguments_.input;
    return {static_cast<const S*>(x.data) + r * x.row_stride, x.class_stride};
  }
  Strided<S> gradient(int64_t r) const {
    const RowTensor& to = arguments_.gradient;
    return {static_cast<S*>(to.data) + r * to.row_stride, to.class_stride};
  }
  // Functions that return the sum of stretch(s) over all stretches s of a row: by this thread alone, or shared by all.
  auto alone() const {
    return [this](const auto& stretch) {
      Totals sum;
      for (int64_t s = 0; s < stretches_; ++s) sum += stretch(s);
      return sum;
    };
  }
  auto shared() const {
    return [this](const auto& stretch) {
      std::vector<Totals> parts(stretches_);
      parallel_for(stretches_, 1, [&](int64_t first, int64_t last) {
        for (int64_t s = first; s < last; ++s) parts[s] = stretch(s);
        if (streams_) finish_streaming();
      });
      Totals sum;
      for (const Totals& part : parts) sum += part;
      return sum;
    };
  }

  // Writes the gradient of row r and returns its loss. `share` is one of the functions above.
  template <class Share>
  double row(int64_t r, Several& several, const Share& share) const {
    const Strided<const S> x = input(r);
    const Strided<S> to = gradient(r);
    double upstream = arguments_.scale / static_cast<double>(classes_);
    const RowTensor& factors = arguments_.upstream;
    if (factors.data) upstream *= load_as<double>(factors.data, factors.dtype, r * factors.row_stride);
    const RowTensor& labels = arguments_.labels;
    const int64_t* const label = static_cast<const int64_t*>(labels.data) + r * labels.row_stride;
    // A list of one target, which is usual, is treated as one target.
    const bool one =
        !arguments_.several_targets || (label[0] >= 0 && (classes_ == 1 || label[labels.class_stride] < 0));
    double value = 0;
    if (one) {
      const RowTensor& weight = arguments_.weight;
      const double factor =
          weight.data ? load_as<double>(weight.data, weight.dtype, label[0] * weight.class_stride) : 1;
      value = row_of_one(x, to, label[0], {upstream * factor, upstream * 0}, share);
      if (value != 0) value *= factor;
    } else {
      read_targets(label, several.targets);
      value = row_of_several(x, to, {upstream, upstream * 0}, several, share);
    }
    value /= static_cast<double>(classes_);
    if (arguments_.losses.data) store_as(arguments_.losses.data, arguments_.losses.dtype, r, value);
    return value;
  }

  void read_targets(const int64_t* label, std::vector<int64_t>& targets) const {
    targets.clear();
    for (int64_t k = 0; k < classes_ && *label >= 0; ++k, label += arguments_.labels.class_stride) {
      targets.push_back(*label);
    }
    std::sort(targets.begin(), targets.end());
  }

  template <class Share>
  double row_of_one(Strided<const S> x, Strided<S> gradient, int64_t y, Scale<double> scale, const Share& share) const {
    const bool ready = x.stride == 1 && (!kGradient || gradient.stride == 1);
    const bool streamed = streams_ && ready && is_aligned(gradient.data);
    const OneTarget<T> target{y, formula_.offset(static_cast<T>(*x.at(y))), scale};  // read before x is overwritten
    Held<T> held;
    const Totals totals = share([&](int64_t s) {
      Totals sum;
      for (const auto [c, n] : chunks_of_stretch(s, classes_)) {
        if (ready) {
          sum += one_target<Formula, kGradient>(x.at(c), c, n, target, gradient.at(c), streamed, held);
        } else {
          sum += gathered_chunk(x, c, n, target, gradient, held);
        }
      }
      return sum;
    });
    if constexpr (kGradient) {
      held.store_with(-scale.apply(totals.slope), y, classes_, gradient.data, gradient.stride, streamed);
    }
    return totals.value;
  }

  Totals gathered_chunk(Strided<const S> x, int64_t c, int64_t n, const OneTarget<T>& target, Strided<S> gradient,
                        Held<T>& held) const {
    alignas(64) T elements[kChunk];
    gather_run(elements, x.at(c), x.stride, n);
    const Totals totals = one_target<Formula, kGradient>(elements, c, n, target, elements, false, held);
    if constexpr (kGradient) scatter_run(gradient.at(c), gradient.stride, elements, n);
    return totals;
  }

  template <class Share>
  double row_of_several(Strided<const S> x, Strided<S> gradient, Scale<double> scale, Several& several,
                        const Share& share) const {
    const std::vector<int64_t>& targets = several.targets;
    const size_t count = targets.size();
    several.offsets.clear();  // scores are read before x is overwritten
    for (const int64_t y : targets) several.offsets.push_back(formula_.offset(static_cast<T>(*x.at(y))));
    several.slopes.assign(stretches_ * count, 0);
    const Totals totals = share([&](int64_t s) {
      Totals sum;
      for (const auto [c, n] : chunks_of_stretch(s, classes_)) {
        sum.value += chunk_of_several(x, gradient, c, n, scale, several, several.slopes.data() + s * count);
      }
      return sum;
    });
    if constexpr (kGradient) {
      for (size_t t = 0; t < count;) {  // targets that are listed more than once follow each other
        const int64_t y = targets[t];
        double slope = 0;
        for (; t < count && targets[t] == y; ++t) {
          for (int64_t s = 0; s < stretches_; ++s) slope += several.slopes[s * count + t];
        }
        *gradient.at(y) = static_cast<S>(static_cast<T>(-scale.apply(slope)));
      }
    }
    return totals.value;
  }

  // Classes [c, c + n): returns their value, writes their gradient, and adds to the slopes of the targets.
  double chunk_of_several(Strided<const S> x, Strided<S> gradient, int64_t c, int64_t n, Scale<double> scale,
                          const Several& several, double* slopes) const {
    alignas(64) T elements[kChunk];
    alignas(64) T class_slopes[kChunk];
    gather_run(elements, x.at(c), x.stride, n);
    const double value =
        several_targets<Formula, kGradient>(elements, c, n, several.targets, several.offsets, class_slopes, slopes);
    if constexpr (kGradient) {
      using V = Vector<T>;
      const Scale<V> lane_scale = scale.template as<V>();
      for (int64_t i = 0; i < n; i += kLanes<T>) store(class_slopes + i, lane_scale.apply(load(class_slopes + i)));
      scatter_run(gradient.at(c), gradient.stride, class_slopes, n);
    }
    return value;
  }

  const ClassMarginArguments& arguments_;
  const Formula formula_;
  const int64_t classes_;
  const int64_t stretches_;
  const bool streams_;
};

}  // namespace fused_losses
