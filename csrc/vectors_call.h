// A call of an operator of vectors, from tensors to the arguments of an engine. See loss_operators.h.
#pragma once

#include "loss_operators.h"
#include "vectors_arguments.h"

namespace fused_losses {

// A view of a tensor without its last dimension.
inline View without_last_dimension(View view) {
  --view.dims;
  ++view.hidden_dims;
  return view;
}

// With `several` operands that are vectors, and a number of each for another one if they are not three.
template <int several, int parameter_count>
class VectorsCall {
 public:
  static constexpr bool kHasStatistics = false;
  static constexpr int64_t kMostReduction = kSum;

  VectorsCall(const Operands& operands, const std::vector<double>& parameters, int64_t reduction,
              const OptionalTensor& upstream)
      : operands_{vectors(operands.input, "input"), vectors(operands.target, "target"),
                  vectors(operands.extra, "extra")},
        vectors_{without_last_dimension(operands_[0]), without_last_dimension(operands_[1]),
                 without_last_dimension(operands_[2])},
        order_(vectors_[0], {&vectors_[0], &vectors_[1], &vectors_[2]}) {
    check_absent(operands.weight, "weight");
    check_parameters(parameters, parameter_count);
    const int dims = order_.layout().dims;
    std::copy_n(order_.layout().sizes, dims, sizes_);
    int64_t& length = sizes_[dims];
    length = 1;
    for (int k = 0; k < several; ++k) {
      const View& view = operands_[k];
      const int64_t size = view.sizes[view.dims - 1];
      if (size == 0) refuse(view, "hold vectors of one element or more");
      if (length == 1) length = size;
      if (size != length && size != 1) refuse(view, "hold vectors of " + std::to_string(length) + " elements");
    }
    if (several == 2 && operands_[2].sizes[operands_[2].dims - 1] != 1) {
      refuse(operands_[2], "hold one number for each vector, in a last dimension of size 1");
    }
    if constexpr (several == 3) check_norm(parameters);
    arguments_.vectors = order_.iteration();
    arguments_.length = length;
    for (int k = 0; k < 3; ++k) arguments_.operands[k] = describe(operands_[k]);
    arguments_.parameters = parameters.data();
    arguments_.parameter_count = static_cast<int>(parameters.size());
    if (upstream) {
      const View view(*upstream, "upstream");
      check_sizes(view, dims, sizes_);
      arguments_.upstream.starts = order_.operand(view);
    }
    if (reduction == kMean) divisor_ = static_cast<double>(arguments_.vectors.count);
  }

  const View& operand(int k) const { return operands_[k]; }
  int64_t derivatives() const { return (int64_t{1} << several) - 1; }
  Layout gradient_layout(int) const { return Layout(operands_[0], order_.layout().dims + 1, sizes_); }
  void write_gradient(int k, const View& gradient) { arguments_.derivatives[k] = describe(gradient); }
  Layout loss_layout() const { return Layout(order_.layout().dims, sizes_); }
  void write_losses(const View& losses) { arguments_.values.starts = order_.operand(losses); }

 protected:
  VectorsArguments arguments_;
  double divisor_ = 1;

 private:
  static View vectors(const OptionalTensor& tensor, const char* name) {
    if (!tensor) refuse(name, "be a tensor", "it is None");
    const View view(*tensor, name);
    check_floating(view);
    if (view.dims == 0) refuse(view, "hold vectors in its last dimension");
    return view;
  }

  // Margin, p, eps, swap, and whether the distance is the cosine's, which has no p.
  static void check_norm(const std::vector<double>& parameters) {
    if (parameters[1] == 0 && !(parameter_count > 4 && parameters[4] != 0)) {
      refuse("parameters", "hold a p, the second, other than 0", "it is 0");
    }
  }

  VectorOperand describe(const View& view) const {
    VectorOperand result;
    result.starts = order_.operand(without_last_dimension(view));
    const int64_t size = view.sizes[view.dims - 1];
    // A vector of one element that is broadcast is read again and again: stride 0. Where all vectors have one element,
    // the stride is not used.
    result.stride = size != 1 ? view.strides[view.dims - 1] : arguments_.length == 1 ? 1 : 0;
    return result;
  }

  View operands_[3];
  View vectors_[3];
  BroadcastOrder order_;
  int64_t sizes_[kMaxDims + 1];
};

}  // namespace fused_losses
