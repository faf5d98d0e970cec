// A call of an operator of rows, from tensors to the arguments of an engine. See loss_operators.h.
#pragma once

#include "loss_operators.h"
#include "vectors_arguments.h"

namespace fused_losses {

// A tensor without its last dimension.
inline View rows_of(View view) {
  if (view.dims == 0) throw std::runtime_error("fused_losses: expected rows, but found a tensor without dimensions");
  --view.dims;
  return view;
}

class RowsCall {
 public:
  static constexpr bool kHasStatistics = false;

  RowsCall(const Operands& operands, const std::vector<double>& parameters, int64_t reduction,
           const OptionalTensor& upstream)
      : operands_{View(operands.input), View(operands.target), View(operands.extra.value())},
        rows_{rows_of(operands_[0]), rows_of(operands_[1]), rows_of(operands_[2])},
        loop_(rows_[0], {&rows_[0], &rows_[1], &rows_[2]}) {
    if (operands.weight) throw std::runtime_error("fused_losses: losses of rows take no weight");
    const int dims = loop_.layout().dims;
    std::copy_n(loop_.layout().sizes, dims, sizes_);
    int64_t& length = sizes_[dims];
    length = operands_[0].sizes[operands_[0].dims - 1];
    for (const View& view : operands_) {
      const int64_t size = view.sizes[view.dims - 1];
      if (length == 1) length = size;
      if (size != length && size != 1) throw std::runtime_error("fused_losses: rows of different lengths");
    }
    arguments_.rows = loop_.iteration();
    arguments_.length = length;
    for (int k = 0; k < 3; ++k) arguments_.operands[k] = describe(operands_[k]);
    arguments_.parameters = parameters.data();
    arguments_.parameter_count = static_cast<int>(parameters.size());
    if (upstream) {
      const View view(*upstream);
      check_sizes(view, dims, sizes_);
      arguments_.upstream.rows = loop_.operand(view);
    }
    if (reduction == kMean) divisor_ = static_cast<double>(arguments_.rows.count);
  }

  const View& operand(int k) const { return operands_[k]; }
  Layout gradient_layout(int) const { return Layout(operands_[0], loop_.layout().dims + 1, sizes_); }
  void write_gradient(int k, const View& gradient) { arguments_.derivatives[k] = describe(gradient); }
  Layout loss_layout() const { return Layout(loop_.layout().dims, sizes_); }
  void write_losses(const View& losses) { arguments_.values.rows = loop_.operand(losses); }

 protected:
  RowsArguments arguments_;
  double divisor_ = 1;

 private:
  RowOperand describe(const View& view) const {
    RowOperand result;
    result.rows = loop_.operand(rows_of(view));
    const int64_t size = view.sizes[view.dims - 1];
    // A row of one element that is broadcast stays where it is; where rows have but one, the stride says nothing.
    result.stride = size != 1 ? view.strides[view.dims - 1] : arguments_.length == 1 ? 1 : 0;
    return result;
  }

  View operands_[3];
  View rows_[3];
  Loop loop_;
  int64_t sizes_[kMaxDims + 1];
};

}  // namespace fused_losses
