// The class margin engine on the CPU.
//
// Reading order: class_margin() at the end checks the labels and chooses what the rest is compiled for; ClassMarginRows
// (class_margin_rows.h) gives rows to threads and does one row; the loops over a chunk are in class_margin_loops.h, and
// the formula in formulas/class_margin.h.
#include "class_margin_engine.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "class_margin_rows.h"
#include "parallel.h"

#include "../formulas/class_margin.h"

namespace fused_losses {
namespace {

// Whether n labels, `stride` apart, are all in [lowest, classes).
bool in_range(const int64_t* labels, int64_t stride, int64_t n, int64_t lowest, int64_t classes) {
  constexpr int lanes = kVectorBytes / sizeof(int64_t);
  LongV outside{};
  int64_t i = 0;
  if (stride == 1) {
    for (; i + lanes <= n; i += lanes) {
      LongV some;
      std::memcpy(&some, labels + i, sizeof(some));
      outside |= (some < lowest) | (some >= classes);
    }
  }
  bool good = true;
  for (int k = 0; k < lanes; ++k) good &= !outside[k];
  for (; i < n; ++i) good &= labels[i * stride] >= lowest && labels[i * stride] < classes;
  return good;
}

void check_labels(const ClassMarginArguments& arguments) {
  const RowTensor& labels = arguments.labels;
  int64_t rows = arguments.several_targets ? arguments.rows : 1;
  int64_t width = arguments.several_targets ? arguments.classes : arguments.rows;
  const int64_t stride = arguments.several_targets ? labels.class_stride : labels.row_stride;
  if (labels.row_stride == width * stride) {  // rows that follow each other in memory are one long row
    width *= rows;
    rows = 1;
  }
  const int64_t count = rows * width;
  std::atomic<bool> good{true};  // an exception may not leave a parallel region
  parallel_for(count, kStretch, [&](int64_t begin, int64_t end) {
    bool all = true;
    for (int64_t at = begin; at < end;) {
      const int64_t n = std::min(width - at % width, end - at);
      const int64_t* const from = static_cast<const int64_t*>(labels.data) + at / width * labels.row_stride;
      all &= in_range(from + at % width * stride, stride, n, arguments.several_targets ? -1 : 0, arguments.classes);
      at += n;
    }
    if (!all) good = false;
  });
  if (good) return;
  throw std::runtime_error(arguments.several_targets ? "argument #2 'target' is out of range" : "target out of range");
}

}  // namespace

double class_margin(const ClassMarginArguments& arguments) {
  check_labels(arguments);
  return with_storage(arguments.input.dtype, [&](auto storage) {
    using S = decltype(storage);
    const auto run = [&](auto p) {
      using Formula = ClassMargin<p.value>;
      if (arguments.gradient.data) return ClassMarginRows<Formula, true, S>(arguments).run();
      return ClassMarginRows<Formula, false, S>(arguments).run();
    };
    return arguments.p == 1 ? run(std::integral_constant<int, 1>{}) : run(std::integral_constant<int, 2>{});
  });
}

}  // namespace fused_losses
