// A call of an operator of vectors, from tensors to the arguments of an engine. See loss_operators.h.
#pragma once

#include "loss_operators.h"
#include "vectors_arguments.h"

namespace fused_losses {

// A tensor without its last dimension.
inline View without_last_dimension(View view) {
  if (view.dims == 0) throw std::runtime_error("fused_losses: expected vectors, but found a tensor without dimensions");
  --view.dims;
  return view;
}

class VectorsCall {
 public:
  static constexpr bool kHasStatistics = false;

  VectorsCall(const Operands& operands, const std::vector<double>& parameters, int64_t reduction,
              const OptionalTensor& upstream)
      : operands_{View(operands.input), View(operands.target), View(operands.extra.value())},
        vectors_{without_last_dimension(operands_[0]), without_last_dimension(operands_[1]),
                 without_last_dimension(operands_[2])},
        order_(vectors_[0], {&vectors_[0], &vectors_[1], &vectors_[2]}) {
    if (operands.weight) throw std::runtime_error("fused_losses: losses of vectors take no weight");
    const int dims = order_.layout().dims;
    std::copy_n(order_.layout().sizes, dims, sizes_);
    int64_t& length = sizes_[dims];
    length = operands_[0].sizes[operands_[0].dims - 1];
    for (const View& view : operands_) {
      const int64_t size = view.sizes[view.dims - 1];
      if (length == 1) length = size;
      if (size != length && size != 1) throw std::runtime_error("fused_losses: vectors of different lengths");
    }
    arguments_.vectors = order_.iteration();
    arguments_.length = length;
    for (int k = 0; k < 3; ++k) arguments_.operands[k] = describe(operands_[k]);
    arguments_.parameters = parameters.data();
    arguments_.parameter_count = static_cast<int>(parameters.size());
    if (upstream) {
      const View view(*upstream);
      check_sizes(view, dims, sizes_);
      arguments_.upstream.starts = order_.operand(view);
    }
    if (reduction == kMean) divisor_ = static_cast<double>(arguments_.vectors.count);
  }

  const View& operand(int k) const { return operands_[k]; }
  Layout gradient_layout(int) const { return Layout(operands_[0], order_.layout().dims + 1, sizes_); }
  void write_gradient(int k, const View& gradient) { arguments_.derivatives[k] = describe(gradient); }
  Layout loss_layout() const { return Layout(order_.layout().dims, sizes_); }
  void write_losses(const View& losses) { arguments_.values.starts = order_.operand(losses); }

 protected:
  VectorsArguments arguments_;
  double divisor_ = 1;

 private:
  VectorOperand describe(const View& view) const {
    VectorOperand result;
    result.starts = order_.operand(without_last_dimension(view));
    const int64_t size = view.sizes[view.dims - 1];
    // A vector of one element that is broadcast stays where it is; where vectors have but one, the stride says nothing.
    result.stride = size != 1 ? view.strides[view.dims - 1] : arguments_.length == 1 ? 1 : 0;
    return result;
  }

  View operands_[3];
  View vectors_[3];
  BroadcastOrder order_;
  int64_t sizes_[kMaxDims + 1];
};

}  // namespace fused_losses
