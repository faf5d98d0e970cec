// The operators of the pointwise family, from tensors to the engine. Their schemas are in fused_losses/ops.py.
#include "pointwise.h"
#include "tensors.h"

#include "../formulas/pointwise.h"

namespace fused_losses {
namespace {

#define FUSED_LOSSES_INPUTS                                                                             \
  const Tensor &input, const Tensor &target, const OptionalTensor &weight, const OptionalTensor &extra, \
      const std::vector<double>&parameters, std::optional<double> ignore_index, int64_t reduction

constexpr int64_t kInput = 1, kTarget = 2;  // bits of `gradients`

template <class Formula>
struct Call {
  std::optional<View> views[4];  // input, target, extra, weight
  std::optional<View> upstream_view;
  Loop loop;
  PointwiseArguments arguments;
  double divisor = 1;

  Call(FUSED_LOSSES_INPUTS, const OptionalTensor& upstream = {})
      : views{View(input), View(target), view(extra), view(weight)},
        upstream_view(view(upstream)),
        loop(*views[0], {&*views[0], &*views[1], pointer(views[2]), pointer(views[3]), pointer(upstream_view)}) {
    arguments.iteration = loop.iteration();
    for (int k = 0; k < 3; ++k) {
      if (views[k]) arguments.operands[k] = loop.operand(*views[k]);
    }
    if (views[3]) arguments.factors[0] = loop.operand(*views[3]);
    if (upstream_view) arguments.factors[1] = loop.operand(*upstream_view);
    arguments.has_ignored = ignore_index.has_value();
    arguments.ignored = ignore_index.value_or(0);
    arguments.parameters = parameters.data();
    if (reduction != kMean) return;
    divisor = static_cast<double>(arguments.iteration.count);
    if (Formula::kMeanOverWeight && views[3]) {
      // torch sums the weights themselves, also where they are broadcast over a larger target.
      divisor = pointwise_divisor(arguments, true) * (static_cast<double>(views[3]->count) / divisor);
    } else if (ignore_index) {
      divisor = pointwise_divisor(arguments, false);
    }
  }

  // The gradients asked for, in order; `reuse` holds their tensors, if there are some already.
  void want(int64_t gradients, std::vector<Tensor>& results, const std::vector<Tensor>* reuse = nullptr) {
    size_t next = 0;
    for (int k = 0; k < 2; ++k) {
      if (!(gradients & (k == 0 ? kInput : kTarget))) continue;
      const Tensor tensor = reuse ? reuse->at(next++) : empty(loop.layout(), views[k]->dtype);
      arguments.derivatives[k] = {tensor.data_ptr(), views[k]->dtype};
      results.push_back(tensor);
    }
  }

 private:
  static std::optional<View> view(const OptionalTensor& tensor) {
    return tensor ? std::optional<View>(*tensor) : std::nullopt;
  }
  static const View* pointer(const std::optional<View>& view) { return view ? &*view : nullptr; }
};

template <class Formula>
std::vector<Tensor> run_forward(Call<Formula>& call, int64_t reduction, ScalarType dtype, std::vector<Tensor> results) {
  if (reduction == kNone) {
    Tensor loss = empty(call.loop.layout(), dtype);
    call.arguments.values = {loss.data_ptr(), dtype};
    pointwise<Formula>(call.arguments);
    results.insert(results.begin(), loss);
    return results;
  }
  call.arguments.wants_sum = true;
  call.arguments.scale = 1 / call.divisor;
  const double sum = pointwise<Formula>(call.arguments);
  results.insert(results.begin(), scalar(sum / call.divisor, dtype));
  return results;
}

template <class Formula>
std::vector<Tensor> forward(FUSED_LOSSES_INPUTS, std::optional<ScalarType> dtype, int64_t gradients) {
  Call<Formula> call(input, target, weight, extra, parameters, ignore_index, reduction);
  std::vector<Tensor> results;
  call.want(gradients, results);
  return run_forward(call, reduction, dtype.value_or(call.views[0]->dtype), std::move(results));
}

// The gradient of the input overwrites it.
template <class Formula>
std::vector<Tensor> forward_inplace(FUSED_LOSSES_INPUTS, std::optional<ScalarType> dtype, int64_t gradients) {
  Call<Formula> call(input, target, weight, extra, parameters, ignore_index, reduction);
  // An error must leave the input as it was, so it must come first.
  if constexpr (Formula::kNeedsDomain) pointwise<Formula>(call.arguments);
  std::vector<Tensor> results;
  call.want(gradients & kTarget, results);
  call.arguments.derivatives[0] = {call.views[0]->data, call.views[0]->dtype};
  return run_forward(call, reduction, dtype.value_or(call.views[0]->dtype), std::move(results));
}

template <class Formula>
void run_backward(const std::vector<Tensor>* into, bool ready, std::vector<Tensor>& results, const Tensor& upstream,
                  FUSED_LOSSES_INPUTS, int64_t gradients) {
  const double scale = reduction == kNone ? 1 : item(upstream);
  if (ready && scale == 1) return;
  Call<Formula> call(input, target, weight, extra, parameters, ignore_index, reduction,
                     reduction == kNone ? OptionalTensor(upstream) : OptionalTensor());
  call.want(gradients, results, into);
  call.arguments.scale = scale / call.divisor;
  pointwise<Formula>(call.arguments);
}

template <class Formula>
std::vector<Tensor> backward(const Tensor& upstream, FUSED_LOSSES_INPUTS, int64_t gradients) {
  std::vector<Tensor> results;
  run_backward<Formula>(nullptr, false, results, upstream, input, target, weight, extra, parameters, ignore_index,
                        reduction, gradients);
  return results;
}

// Into tensors that are there already. `ready` says that they hold the gradients for an upstream gradient of
// 1: if it is 1, they stay untouched.
template <class Formula>
void backward_into(const std::vector<Tensor>& into, bool ready, const Tensor& upstream, FUSED_LOSSES_INPUTS,
                   int64_t gradients) {
  std::vector<Tensor> results;
  run_backward<Formula>(&into, ready, results, upstream, input, target, weight, extra, parameters, ignore_index,
                        reduction, gradients);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, m) {
#define FUSED_LOSSES_REGISTER(name, Formula)                \
  m.impl(#name, TORCH_BOX(&forward<Formula>));              \
  m.impl(#name "_", TORCH_BOX(&forward_inplace<Formula>));  \
  m.impl(#name "_backward", TORCH_BOX(&backward<Formula>)); \
  m.impl(#name "_backward_", TORCH_BOX(&backward_into<Formula>));
  FUSED_LOSSES_POINTWISE(FUSED_LOSSES_REGISTER)
#undef FUSED_LOSSES_REGISTER
}

}  // namespace fused_losses
