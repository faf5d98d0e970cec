// The operators cross_entropy and nll_loss, from tensors to the engine. Their schemas are in fused_losses/ops.py.
#include "cross_entropy.h"
#include "tensors.h"

namespace fused_losses {
namespace {

constexpr int64_t kInput = 1, kTarget = 2, kStatistics = 4;  // bits of `gradients`

using Engine = double (*)(const CrossEntropyArguments&);

#define FUSED_LOSSES_INPUTS const Tensor &input, const Tensor &target, const OptionalTensor &weight
#define FUSED_LOSSES_OPTIONS int64_t ignore_index, double label_smoothing, int64_t reduction

// The positions of logits (N, C, d1, ...) are (N, d1, ...); of labels, all dimensions. Which of a tensor's own
// dimensions is position d:
int own_dimension(int d, bool has_classes, int dims) { return has_classes && (d > 0 || dims == 1) ? d + 1 : d; }

class Call {
 public:
  Call(FUSED_LOSSES_INPUTS, int64_t ignore_index, double label_smoothing, const OptionalTensor& upstream = {})
      : input_(input), target_(target) {
    arguments.ignore_index = ignore_index;
    arguments.label_smoothing = label_smoothing;
    const int class_dim = input_.dims == 1 ? 0 : 1;
    arguments.classes = input_.sizes[class_dim];
    has_labels_ = target_.dtype == ScalarType::Long || target_.dtype == ScalarType::Byte;
    for (int d = 0; d < input_.dims - 1; ++d) {
      sizes_[dims_++] = input_.sizes[own_dimension(d, true, input_.dims)];
    }
    ClassTensor& targets = has_labels_ ? arguments.labels : arguments.probabilities;
    describe(arguments.input, input_.data, input_.dtype, input_.strides, true);
    describe(targets, target_.data, target_.dtype, target_.strides, !has_labels_);
    if (weight) {
      const View view(*weight);
      arguments.weight.data = view.data;
      arguments.weight.dtype = view.dtype;
      arguments.weight.strides.classes = view.dims ? view.strides[0] : 0;
    }
    if (upstream) {
      const View view(*upstream);
      describe(arguments.upstream, view.data, view.dtype, view.strides, false);
    }
  }

  // The gradients asked for, in order; `reuse` holds their tensors, if there are some already.
  void want(int64_t gradients, std::vector<Tensor>& results, const std::vector<Tensor>* reuse = nullptr) {
    size_t next = 0;
    const auto one = [&](ClassTensor& gradient, const View& of) {
      const Layout layout(of, of.dims, of.sizes);
      const Tensor tensor = reuse ? reuse->at(next++) : empty(layout, of.dtype);
      describe(gradient, tensor.data_ptr(), of.dtype, layout.strides, true);
      results.push_back(tensor);
    };
    if (gradients & kInput) one(arguments.input_gradient, input_);
    if (gradients & kTarget) one(arguments.probabilities_gradient, target_);
  }

  void overwrite_input() { describe(arguments.input_gradient, input_.data, input_.dtype, input_.strides, true); }

  // Each row's maximum and sum, (2, rows).
  Tensor statistics() {
    const int64_t sizes[] = {2, positions()};
    Tensor tensor = empty(Layout(2, sizes), statistics_dtype());
    use_statistics(tensor);
    return tensor;
  }

  void use_statistics(const Tensor& tensor) {
    if (tensor.numel() != 2 * positions() || tensor.scalar_type() != statistics_dtype()) {
      throw std::runtime_error("fused_losses: these are not the statistics of this input");
    }
    arguments.max = tensor.data_ptr();
    const size_t width = statistics_dtype() == ScalarType::Double ? sizeof(double) : sizeof(float);
    arguments.sum = static_cast<char*>(arguments.max) + positions() * width;
  }

  // After every tensor is described: merges the positions' dimensions where all tensors allow.
  void finish(int64_t reduction) {
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
    // The innermost one is `inner`, unless it is N: positions side by side are what tiles are for.
    for_each_tensor([&](ClassTensor& tensor) { tensor.strides.inner = last >= 0 ? tensor.strides.outer[last] : 0; });
    arguments.inner = last >= 0 ? sizes_[last] : 1;
    arguments.outer_dims = last >= 0 ? last : 0;
    arguments.outer = 1;
    for (int d = 0; d < arguments.outer_dims; ++d) {
      arguments.outer_sizes[d] = sizes_[d];
      arguments.outer *= sizes_[d];
    }
    const double divisor = cross_entropy_divisor(arguments);
    divisor_ = reduction == kMean ? divisor : 1;
  }

  double divisor() const { return divisor_; }

  // One loss per position.
  Layout loss_layout() const {
    int64_t sizes[kMaxDims];
    for (int d = 0; d < input_.dims - 1; ++d) sizes[d] = input_.sizes[own_dimension(d, true, input_.dims)];
    return Layout(input_.dims - 1, sizes);
  }

  CrossEntropyArguments arguments;

 private:
  int64_t positions() const {
    int64_t count = 1;
    for (int d = 0; d < input_.dims - 1; ++d) count *= input_.sizes[own_dimension(d, true, input_.dims)];
    return count;
  }

  ScalarType statistics_dtype() const {
    return input_.dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  void describe(ClassTensor& tensor, void* data, ScalarType dtype, const int64_t* strides, bool has_classes) const {
    tensor.data = data;
    tensor.dtype = dtype;
    if (has_classes) tensor.strides.classes = strides[input_.dims == 1 ? 0 : 1];
    for (int d = 0; d < dims_; ++d) tensor.strides.outer[d] = strides[own_dimension(d, has_classes, input_.dims)];
  }

  template <class Body>
  void for_each_tensor(const Body& body) {
    for (ClassTensor* tensor : {&arguments.input, &arguments.labels, &arguments.probabilities, &arguments.upstream,
                                &arguments.input_gradient, &arguments.probabilities_gradient}) {
      if (tensor->data) body(*tensor);
    }
  }

  View input_, target_;
  bool has_labels_ = true;
  int dims_ = 0;
  int64_t sizes_[kMaxDims];
  double divisor_ = 1;
};

// What forward and forward_inplace share, once the gradients' tensors are known.
template <Engine engine>
std::vector<Tensor> run_forward(Call& call, std::optional<ScalarType> dtype, int64_t reduction, bool keep,
                                std::vector<Tensor> results) {
  if (keep && engine == cross_entropy) results.insert(results.begin(), call.statistics());
  call.finish(reduction);
  CrossEntropyArguments& arguments = call.arguments;
  arguments.scale = 1 / call.divisor();
  const ScalarType loss_dtype = dtype.value_or(arguments.input.dtype);
  if (reduction == kNone) {
    const Tensor losses = empty(call.loss_layout(), loss_dtype);
    arguments.losses = {losses.data_ptr(), loss_dtype};
    engine(arguments);
    results.insert(results.begin(), losses);
  } else {
    const double sum = engine(arguments);
    results.insert(results.begin(), scalar(sum / call.divisor(), loss_dtype));
  }
  return results;
}

template <Engine engine>
std::vector<Tensor> forward(FUSED_LOSSES_INPUTS, FUSED_LOSSES_OPTIONS, std::optional<ScalarType> dtype,
                            int64_t gradients) {
  Call call(input, target, weight, ignore_index, label_smoothing);
  std::vector<Tensor> results;
  call.want(gradients, results);
  return run_forward<engine>(call, dtype, reduction, gradients & kStatistics, std::move(results));
}

// The gradient of the input overwrites it.
template <Engine engine>
std::vector<Tensor> forward_inplace(FUSED_LOSSES_INPUTS, FUSED_LOSSES_OPTIONS, std::optional<ScalarType> dtype,
                                    int64_t gradients) {
  Call call(input, target, weight, ignore_index, label_smoothing);
  std::vector<Tensor> results;
  call.want(gradients & kTarget, results);
  call.overwrite_input();
  return run_forward<engine>(call, dtype, reduction, gradients & kStatistics, std::move(results));
}

template <Engine engine>
std::vector<Tensor> run_backward(const std::vector<Tensor>* into, bool ready, const Tensor& upstream,
                                 FUSED_LOSSES_INPUTS, const OptionalTensor& statistics, FUSED_LOSSES_OPTIONS,
                                 int64_t gradients) {
  std::vector<Tensor> results;
  const double scale = reduction == kNone ? 1 : item(upstream);
  if (ready && scale == 1) return results;
  Call call(input, target, weight, ignore_index, label_smoothing,
            reduction == kNone ? OptionalTensor(upstream) : OptionalTensor());
  call.want(gradients, results, into);
  if (statistics) call.use_statistics(*statistics);
  call.finish(reduction);
  call.arguments.backward = true;
  call.arguments.scale = scale / call.divisor();
  engine(call.arguments);
  return results;
}

template <Engine engine>
std::vector<Tensor> backward(const Tensor& upstream, FUSED_LOSSES_INPUTS, const OptionalTensor& statistics,
                             FUSED_LOSSES_OPTIONS, int64_t gradients) {
  return run_backward<engine>(nullptr, false, upstream, input, target, weight, statistics, ignore_index,
                              label_smoothing, reduction, gradients);
}

// Into tensors that are there already. `ready` says that they hold the gradients for an upstream gradient of
// 1: if it is 1, they stay untouched.
template <Engine engine>
void backward_into(const std::vector<Tensor>& into, bool ready, const Tensor& upstream, FUSED_LOSSES_INPUTS,
                   const OptionalTensor& statistics, FUSED_LOSSES_OPTIONS, int64_t gradients) {
  run_backward<engine>(&into, ready, upstream, input, target, weight, statistics, ignore_index, label_smoothing,
                       reduction, gradients);
}

template <Engine engine>
void implement(torch::stable::detail::StableLibrary& m, const std::string& name) {
  m.impl(name.c_str(), TORCH_BOX(&forward<engine>));
  m.impl((name + "_").c_str(), TORCH_BOX(&forward_inplace<engine>));
  m.impl((name + "_backward").c_str(), TORCH_BOX(&backward<engine>));
  m.impl((name + "_backward_").c_str(), TORCH_BOX(&backward_into<engine>));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, m) {
  implement<cross_entropy>(m, "cross_entropy");
  implement<nll>(m, "nll_loss");
}

}  // namespace fused_losses
