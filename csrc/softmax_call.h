// A call of cross_entropy or nll_loss, from tensors to the arguments of an engine. See loss_operators.h.
#pragma once

#include <type_traits>

#include "loss_operators.h"
#include "softmax_arguments.h"

namespace fused_losses {

// Which of a tensor's dimensions is dimension d of the positions (N, d1, ...): if it has classes, (N, C, d1, ...), C is
// left out.
inline int own_dimension(int d, bool has_classes, int dims) { return has_classes && (d > 0 || dims == 1) ? d + 1 : d; }

// Whether two engines are one. Their addresses cannot be compared by the compiler where a sanitizer looks at pointers;
// types that are made of them can.
template <auto a, auto b>
inline constexpr bool kSameEngine =
    std::is_same_v<std::integral_constant<decltype(a), a>, std::integral_constant<decltype(b), b>>;

// kSoftmax says whether the loss begins with a softmax, whose statistics are worth keeping.
template <bool kSoftmax>
class SoftmaxCall {
 public:
  static constexpr bool kHasStatistics = kSoftmax;
  static constexpr int64_t kMostReduction = kSum;

  // `operands.extra` holds the statistics that the forward has written, or nothing.
  SoftmaxCall(const Operands& operands, int64_t ignore_index, double label_smoothing, const std::vector<double>& terms,
              const OptionalTensor& normalizer, const OptionalTensor& lse_gradient, int64_t reduction,
              const OptionalTensor& upstream)
      : input_(operands.input, "input"), target_(operands.target, "target"), reduction_(reduction) {
    check_floating(input_);
    if (input_.dims == 0 || input_.sizes[input_.dims == 1 ? 0 : 1] == 0) {
      refuse(input_, "have shape (N, C, ...) or (C,), of one class or more");
    }
    if (input_.dims - 1 > kLoopDims) refuse(input_, "have at most 8 dimensions besides the classes");
    check_smoothing(label_smoothing);
    arguments_.ignore_index = ignore_index;
    arguments_.label_smoothing = label_smoothing;
    if (!terms.empty()) arguments_.terms = read_terms(terms);
    arguments_.classes = input_.sizes[input_.dims == 1 ? 0 : 1];
    for (int d = 0; d < input_.dims - 1; ++d) {
      sizes_[dims_++] = input_.sizes[own_dimension(d, true, input_.dims)];
    }
    has_labels_ = target_.dtype == ScalarType::Long || target_.dtype == ScalarType::Byte;
    check_target();
    describe(arguments_.input, input_, true);
    describe(has_labels_ ? arguments_.labels : arguments_.probabilities, target_, !has_labels_);
    if (operands.weight) {
      const View view(*operands.weight, "weight");
      check_floating(view);
      check_sizes(view, 1, &arguments_.classes);
      arguments_.weight.data = view.data;
      arguments_.weight.dtype = view.dtype;
      arguments_.weight.strides.classes = view.strides[0];
    }
    if (!kSoftmax) check_absent(operands.extra, "extra");
    if (operands.extra) {
      const View view(*operands.extra, "extra");
      if (!has_layout(view, statistics_layout(), statistics_dtype())) {
        refuse(view, "be the statistics of this input, " + text_of(statistics_dtype()) + " of shape " +
                         text_of(2, statistics_layout().sizes) + " and contiguous");
      }
      write_statistics(view);
    }
    if (upstream) {
      const View view(*upstream, "upstream");
      check_sizes(view, dims_, sizes_);
      describe(arguments_.upstream, view, false);
    }
    arguments_.normalizer = normalizer_of(normalizer);
    if (!kSoftmax) check_absent(lse_gradient, "lse_gradient");
    if (lse_gradient) {
      const View view(*lse_gradient, "lse_gradient");
      check_floating(view);
      check_sizes(view, dims_, sizes_);
      describe(arguments_.lse_gradient, view, false);
    }
  }

  int64_t derivatives() const { return has_labels_ ? kInput : kInput | kTarget; }
  const View& operand(int k) const { return k == 0 ? input_ : target_; }
  Layout gradient_layout(int k) const { return Layout(operand(k), input_.dims, input_.sizes); }
  void write_gradient(int k, const View& gradient) {
    describe(k == 0 ? arguments_.input_gradient : arguments_.probabilities_gradient, gradient, true);
  }

  // One loss per position.
  Layout loss_layout() const {
    int64_t sizes[kMaxDims];
    for (int d = 0; d < input_.dims - 1; ++d) sizes[d] = input_.sizes[own_dimension(d, true, input_.dims)];
    return Layout(input_.dims - 1, sizes);
  }
  void write_losses(const View& losses) { arguments_.losses = {losses.data, losses.dtype}; }

  // The statistics of all positions, (2 or 3, P): references, sums and, if there is an entropy, mean excesses.
  Layout statistics_layout() const {
    const int64_t sizes[] = {arguments_.terms.entropy != 0 ? 3 : 2, loss_layout().count};
    return Layout(2, sizes);
  }
  ScalarType statistics_dtype() const {
    return input_.dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }
  void write_statistics(const View& statistics) {
    const size_t width = statistics.dtype == ScalarType::Double ? sizeof(double) : sizeof(float);
    arguments_.reference = statistics.data;
    arguments_.sum = static_cast<char*>(arguments_.reference) + statistics.sizes[1] * width;
    if (statistics.sizes[0] == 3)
      arguments_.mean_excess = static_cast<char*>(arguments_.sum) + statistics.sizes[1] * width;
  }
  void write_argmax(const View& argmax) { arguments_.argmax = static_cast<int64_t*>(argmax.data); }

 protected:
  bool is_mean() const { return reduction_ == kMean; }

  // Merges dimensions of the positions where all tensors allow, once all tensors are known.
  void merge_positions() {
    int last = -1;
    for (int d = 0; d < dims_; ++d) {
      bool merge = last >= 0;
      for_each_tensor([&](ClassTensor& tensor) {
        merge = merge && tensor.strides.outer[last] == tensor.strides.outer[d] * sizes_[d];
      });
      const int into = merge ? last : ++last;
      sizes_[into] = merge ? sizes_[into] * sizes_[d] : sizes_[d];
      for_each_tensor([&](ClassTensor& tensor) { tensor.strides.outer[into] = tensor.strides.outer[d]; });
    }
    // The innermost dimension becomes `inner`, along which tiles lie; what is outside of it, `outer`.
    for_each_tensor([&](ClassTensor& tensor) { tensor.strides.inner = last >= 0 ? tensor.strides.outer[last] : 0; });
    arguments_.inner = last >= 0 ? sizes_[last] : 1;
    arguments_.outer_dims = last >= 0 ? last : 0;
    arguments_.outer = 1;
    for (int d = 0; d < arguments_.outer_dims; ++d) {
      arguments_.outer_sizes[d] = sizes_[d];
      arguments_.outer *= sizes_[d];
    }
  }

  SoftmaxArguments arguments_;

 private:
  static SoftmaxTerms read_terms(const std::vector<double>& terms) {
    if (!kSoftmax || terms.size() != 4) {
      refuse("terms", kSoftmax ? "hold no or four numbers" : "hold no numbers",
             "they are " + std::to_string(terms.size()));
    }
    return {terms[0], terms[1], terms[2], terms[3]};
  }

  static void check_smoothing(double label_smoothing) {
    // NaN is not between them.
    if (label_smoothing >= 0 && label_smoothing <= (kSoftmax ? 1 : 0)) return;
    refuse("label_smoothing", kSoftmax ? "be between 0 and 1" : "be 0", "it is " + std::to_string(label_smoothing));
  }

  void check_target() const {
    const bool is_double = input_.dtype == ScalarType::Double;
    const bool are_probabilities = kSoftmax && is_floating(target_.dtype);
    const int dims = are_probabilities ? input_.dims : dims_;
    const int64_t* const sizes = are_probabilities ? input_.sizes : sizes_;
    const bool has_dtype = are_probabilities ? (target_.dtype == ScalarType::Double) == is_double : has_labels_;
    if (has_dtype && target_.dims == dims && std::equal(sizes, sizes + dims, target_.sizes)) {
      if (has_labels_ || arguments_.ignore_index < 0) return;
      refuse("ignore_index", "be negative, since the target holds probabilities",
             "it is " + std::to_string(arguments_.ignore_index));
    }
    std::string expected = "be int64 or uint8 class indices of shape " + text_of(dims_, sizes_);
    if (kSoftmax) {
      expected += std::string(", or ") + (is_double ? "float64" : "float32, bfloat16 or float16") +
                  " probabilities of shape " + text_of(input_.dims, input_.sizes);
    }
    refuse(target_, expected);
  }

  void describe(ClassTensor& tensor, const View& view, bool has_classes) const {
    tensor.data = view.data;
    tensor.dtype = view.dtype;
    if (has_classes) tensor.strides.classes = view.strides[input_.dims == 1 ? 0 : 1];
    for (int d = 0; d < dims_; ++d) tensor.strides.outer[d] = view.strides[own_dimension(d, has_classes, input_.dims)];
  }

  template <class Body>
  void for_each_tensor(const Body& body) {
    for (ClassTensor* tensor :
         {&arguments_.input, &arguments_.labels, &arguments_.probabilities, &arguments_.upstream,
          &arguments_.lse_gradient, &arguments_.input_gradient, &arguments_.probabilities_gradient}) {
      if (tensor->data) body(*tensor);
    }
  }

  View input_, target_;
  bool has_labels_;
  int64_t reduction_;
  int dims_ = 0;
  int64_t sizes_[kLoopDims];
};

}  // namespace fused_losses
