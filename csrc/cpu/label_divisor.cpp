// What the mean over labels divides by; on the way, whether all labels are classes.
#include <atomic>
#include <stdexcept>
#include <string>

#include "labels.h"
#include "softmax_engine.h"

namespace fused_losses {
namespace {

// Throws an error that names the first label that is no class.
[[noreturn]] void throw_out_of_bounds(const SoftmaxArguments& arguments) {
  for_each_position_run(arguments, 0, arguments.outer * arguments.inner, [&](const PositionRun& run) {
    int64_t labels[kChunk];
    read_labels(arguments, run, labels);
    for (int64_t i = 0; i < run.count(); ++i) {
      if (labels[i] == arguments.ignore_index || (labels[i] >= 0 && labels[i] < arguments.classes)) continue;
      throw std::out_of_range("Target " + std::to_string(labels[i]) + " is out of bounds.");
    }
  });
  throw std::logic_error("fused_losses: the target changed while it was read");
}

}  // namespace

double label_divisor(const SoftmaxArguments& arguments) {
  if (!arguments.labels.data) return static_cast<double>(arguments.outer * arguments.inner);
  const Targets<double> targets(arguments);
  std::atomic<bool> all_in_bounds{true};  // an exception may not leave a parallel region
  const double divisor = sum_over_position_runs(arguments, 1, [&](const PositionRun& run) {
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

}  // namespace fused_losses
