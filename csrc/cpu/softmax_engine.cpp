// The softmax engine on the CPU.
//
// Reading order: cross_entropy() below chooses between SoftmaxRows (softmax_rows.h), whose registers lie along the
// classes of one row, and SoftmaxTiles (softmax_tiles.h), which has one position in each lane. Both ask Targets
// (softmax_targets.h) for labels, weights and soft targets, and leave to formulas/cross_entropy.h what they find. The
// loops over a chunk of a row are in softmax_chunks.h, and for rows with more terms than the cross-entropy in
// softmax_term_loops.h; how tiles get into and out of memory is in softmax_tile_memory.h.
#include "softmax_engine.h"

#include "softmax_rows.h"
#include "softmax_tiles.h"

namespace fused_losses {
namespace {

// Rows of fewer classes go through tiles, which transpose them: measured, the overhead of a row by itself costs more
// than that up to about this length.
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
