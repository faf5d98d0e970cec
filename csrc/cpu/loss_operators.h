// The four operators of a loss, for any engine: which tensors are made, and what is computed into them.
//
// A Call goes from tensors to the arguments of an engine. It has
//   kHasStatistics  whether there is something of each row to keep for the backward: then also
//                   statistics_layout(), statistics_dtype() and write_statistics(view)
//   Call(operands, options..., reduction, upstream)  upstream: of each loss, where there is one for each
//   operand(k)            input, target or extra
//   gradient_layout(k), write_gradient(k, view)  where the derivative with respect to operand k goes
//   loss_layout(), write_losses(view)            where losses go that are not reduced
//   prepare()       once all tensors are known: the last moment for errors, since the input may be overwritten
//   divisor()       of the mean, 1 for other reductions
//   run(scale, forward)  derivatives times scale; returns the sum of the losses if going forward
#pragma once

#include "tensors.h"

namespace fused_losses {

struct Operands {
  const Tensor &input, &target;
  const OptionalTensor &weight, &extra;
};

// Anyone may call an operator, with operands that are not what the engine takes for granted.
inline void check_sizes(const View& view, int dims, const int64_t* sizes) {
  if (view.dims != dims || !std::equal(sizes, sizes + dims, view.sizes)) {
    throw std::runtime_error("fused_losses: an operand has another shape than the input demands");
  }
}

inline bool has_layout(const View& view, const Layout& layout, ScalarType dtype) {
  bool same = view.dims == layout.dims && view.dtype == dtype;
  for (int d = 0; same && d < view.dims; ++d) {
    same = view.sizes[d] == layout.sizes[d] && (view.sizes[d] == 1 || view.strides[d] == layout.strides[d]);
  }
  return same;
}

inline void check_layout(const View& view, const Layout& layout, ScalarType dtype) {
  if (has_layout(view, layout, dtype)) return;
  throw std::runtime_error("fused_losses: a tensor to write to has another shape, layout or dtype");
}

#define FUSED_LOSSES_OPERANDS \
  const Tensor &input, const Tensor &target, const OptionalTensor &weight, const OptionalTensor &extra

template <class Call, class... Options>
class LossOperators {
  using Tensors = std::vector<Tensor>;

 public:
  static void implement(torch::stable::detail::StableLibrary& m, const std::string& name) {
    m.impl(name.c_str(), TORCH_BOX(&forward));
    m.impl((name + "_").c_str(), TORCH_BOX(&forward_inplace));
    m.impl((name + "_backward").c_str(), TORCH_BOX(&backward));
    m.impl((name + "_backward_").c_str(), TORCH_BOX(&backward_into));
  }

  static Tensors forward(FUSED_LOSSES_OPERANDS, Options... options, int64_t reduction, std::optional<ScalarType> dtype,
                         int64_t gradients) {
    Call call({input, target, weight, extra}, options..., reduction, OptionalTensor());
    return run_forward(call, reduction, dtype, gradients);
  }

  // The gradient of the input overwrites it.
  static Tensors forward_inplace(FUSED_LOSSES_OPERANDS, Options... options, int64_t reduction,
                                 std::optional<ScalarType> dtype, int64_t gradients) {
    Call call({input, target, weight, extra}, options..., reduction, OptionalTensor());
    const View view(input);
    check_layout(view, call.gradient_layout(0), view.dtype);
    call.write_gradient(0, view);
    return run_forward(call, reduction, dtype, gradients & ~kInput);
  }

  static Tensors backward(const Tensor& upstream, FUSED_LOSSES_OPERANDS, Options... options, int64_t reduction,
                          int64_t gradients) {
    return run_backward(nullptr, false, upstream, {input, target, weight, extra}, options..., reduction, gradients);
  }

  // Into tensors that are there already. `ready` says that they hold the gradients for an upstream gradient of
  // 1: if it is 1, they stay untouched.
  static void backward_into(const Tensors& into, bool ready, const Tensor& upstream, FUSED_LOSSES_OPERANDS,
                            Options... options, int64_t reduction, int64_t gradients) {
    run_backward(&into, ready, upstream, {input, target, weight, extra}, options..., reduction, gradients);
  }

 private:
  static Tensors run_forward(Call& call, int64_t reduction, std::optional<ScalarType> wanted_dtype, int64_t gradients) {
    const ScalarType dtype = wanted_dtype.value_or(call.operand(0).dtype);
    Tensors results;
    if (reduction == kNone) {
      results.push_back(empty(call.loss_layout(), dtype));
      call.write_losses(View(results[0]));
    }
    if constexpr (Call::kHasStatistics) {
      if (gradients & kStatistics) {
        results.push_back(empty(call.statistics_layout(), call.statistics_dtype()));
        call.write_statistics(View(results.back()));
      }
    }
    want(call, gradients, nullptr, results);
    call.prepare();
    const double sum = call.run(1 / call.divisor(), true);
    if (reduction != kNone) results.insert(results.begin(), scalar(sum / call.divisor(), dtype));
    return results;
  }

  static Tensors run_backward(const Tensors* into, bool ready, const Tensor& upstream, const Operands& operands,
                              Options... options, int64_t reduction, int64_t gradients) {
    Tensors results;
    const double scale = reduction == kNone ? 1 : item(upstream);
    if (ready && scale == 1) return results;
    Call call(operands, options..., reduction, reduction == kNone ? OptionalTensor(upstream) : OptionalTensor());
    want(call, gradients, into, results);
    call.prepare();
    call.run(scale / call.divisor(), false);
    return results;
  }

  // The gradients asked for, in order; `reuse` holds their tensors, if there are some already.
  static void want(Call& call, int64_t gradients, const Tensors* reuse, Tensors& results) {
    size_t next = 0;
    for (int k = 0; k < 3; ++k) {
      if (!(gradients & (kInput << k))) continue;
      const Layout layout = call.gradient_layout(k);
      const ScalarType dtype = call.operand(k).dtype;
      results.push_back(reuse ? reuse->at(next++) : empty(layout, dtype));
      const View view(results.back());
      if (reuse) check_layout(view, layout, dtype);
      call.write_gradient(k, view);
    }
  }
};

#undef FUSED_LOSSES_OPERANDS

}  // namespace fused_losses
