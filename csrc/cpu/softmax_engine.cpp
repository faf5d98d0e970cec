// Which way the rows of a softmax are read.
#include "softmax_engine.h"

#include "softmax_rows.h"
#include "softmax_tiles.h"

namespace fused_losses {
namespace {

// Rows of fewer classes go many to a register, and are transposed for it: measured, a row's own overhead costs
// more than that up to about this length.
constexpr int64_t kShortRow = 64;

bool rows_lie_ready(const SoftmaxArguments& arguments) {
  if (arguments.classes < kShortRow) return false;
  for (const ClassTensor* tensor :
       {&arguments.input, &arguments.probabilities, &arguments.input_gradient, &arguments.probabilities_gradient}) {
    if (tensor->data && tensor->strides.classes != 1) return false;
  }
  return true;
}

}  // namespace

double cross_entropy(const SoftmaxArguments& arguments) {
  return with_storage(arguments.input.dtype, [&](auto storage) {
    using S = decltype(storage);
    if (rows_lie_ready(arguments)) return SoftmaxRows<S>(arguments).run();
    return SoftmaxTiles<S>(arguments).run();
  });
}

}  // namespace fused_losses
