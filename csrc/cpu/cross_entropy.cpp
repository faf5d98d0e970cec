// Which way rows are read, what the mean divides by, and the negative log-likelihood of ready log-probabilities.
#include "cross_entropy.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"
#include "softmax_rows.h"
#include "softmax_targets.h"
#include "softmax_tiles.h"

namespace fused_losses {
namespace {

// Rows of fewer classes go many to a register, and are transposed for it: measured, a row's own overhead costs
// more than that up to about this length.
constexpr int64_t kShortRow = 64;

bool rows_lie_ready(const CrossEntropyArguments& arguments) {
  if (arguments.classes < kShortRow) return false;
  for (const ClassTensor* tensor :
       {&arguments.input, &arguments.probabilities, &arguments.input_gradient, &arguments.probabilities_gradient}) {
    if (tensor->data && tensor->strides.classes != 1) return false;
  }
  return true;
}

// Sums term(label, row, outer, inner) over the rows that are not ignored, in blocks.
template <class Term>
double sum_over_labels(const CrossEntropyArguments& arguments, const Term& term) {
  const int64_t rows = arguments.outer * arguments.inner;
  const int64_t blocks = (rows + kStretch - 1) / kStretch;
  std::vector<double> sums(blocks);
  std::vector<int64_t> bad(blocks, -1);  // an exception may not leave a parallel region
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t end = std::min(rows, (b + 1) * kStretch);
      Sum sum;
      int64_t outer = b * kStretch / arguments.inner, inner = b * kStretch % arguments.inner;
      for (int64_t r = b * kStretch; r < end; ++r) {
        const int64_t label = label_of(arguments, outer, inner);
        if (label != arguments.ignore_index) {
          if (label < 0 || label >= arguments.classes) {
            bad[b] = r;
            break;
          }
          sum += term(label, r, outer, inner);
        }
        if (++inner == arguments.inner) {
          inner = 0;
          ++outer;
        }
      }
      sums[b] = sum.value();
    }
  });
  for (const int64_t row : bad) {
    if (row < 0) continue;
    const int64_t label = label_of(arguments, row / arguments.inner, row % arguments.inner);
    throw std::out_of_range("Target " + std::to_string(label) + " is out of bounds.");
  }
  return sum_of(sums);
}

}  // namespace

double cross_entropy_divisor(const CrossEntropyArguments& arguments) {
  if (!arguments.labels.data) return static_cast<double>(arguments.outer * arguments.inner);
  const Targets<double> targets(arguments);
  return sum_over_labels(arguments, [&](int64_t label, int64_t, int64_t, int64_t) { return targets.weight(label); });
}

double cross_entropy(const CrossEntropyArguments& arguments) {
  return with_storage(arguments.input.dtype, [&](auto storage) {
    using S = decltype(storage);
    if (rows_lie_ready(arguments)) return SoftmaxRows<S>(arguments).run();
    return SoftmaxTiles<S>(arguments).run();
  });
}

double nll(const CrossEntropyArguments& arguments) {
  return with_storage(arguments.input.dtype, [&](auto storage) {
    using S = decltype(storage);
    using T = Compute<S>;
    const Targets<T> targets(arguments);
    double total = 0;
    if (!arguments.backward) {
      if (arguments.losses.data) {  // of ignored rows
        for (int64_t r = 0; r < arguments.outer * arguments.inner; ++r) store_loss(arguments, r, 0);
      }
      total = sum_over_labels(arguments, [&](int64_t label, int64_t row, int64_t outer, int64_t inner) {
        const S* const x = at<S>(arguments, arguments.input, outer, inner);
        const double value = -targets.weight(label) * static_cast<T>(x[label * arguments.input.strides.classes]);
        if (arguments.losses.data) store_loss(arguments, row, value);
        return value;
      });
    }
    // Only now, since the gradient may overwrite the input: all zeros, but for each row's label.
    const ClassTensor& gradient = arguments.input_gradient;
    if (gradient.data) {
      S* const elements = static_cast<S*>(gradient.data);
      parallel_for(arguments.outer * arguments.classes * arguments.inner, kStretch,
                   [&](int64_t begin, int64_t end) { std::fill(elements + begin, elements + end, S(0)); });
      sum_over_labels(arguments, [&](int64_t label, int64_t, int64_t outer, int64_t inner) {
        const double scale = arguments.scale * upstream_of(arguments, outer, inner);
        S* const row = const_cast<S*>(at<S>(arguments, gradient, outer, inner));
        row[label * gradient.strides.classes] = static_cast<S>(static_cast<T>(-targets.weight(label) * scale));
        return 0.0;
      });
    }
    return total;
  });
}

}  // namespace fused_losses
