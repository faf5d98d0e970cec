// The four operators of a loss, for any engine: which tensors are made, and what is computed into them.
//
// A Call goes from tensors to the arguments of an engine. It has
//   kHasStatistics  whether there is something of each row to keep for the backward: then also
//                   statistics_layout(), statistics_dtype() and write_statistics(view); and write_argmax(view)
//   Call(operands, options..., reduction, upstream)  upstream: of each loss, where there is one for each
//   operand(k)            input, target or extra
//   gradient_layout(k), write_gradient(k, view)  where the derivative with respect to operand k goes
//   loss_layout(), write_losses(view)            where losses go that are not reduced
//   empty(layout, dtype, like)  a tensor where `like` is
//   forward(loss)   once all tensors are known; `loss` is where the reduced one goes, null if there is none
//   backward(upstream, ready)   the same; `upstream` of the reduced loss, null if there is one of each. `ready` says
//   that
//                   derivatives are there for an upstream gradient of 1: if it is 1, they stay untouched
#pragma once

#include "tensor.h"

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
    check_devices(input, target, weight, extra, options...);
    Call call({input, target, weight, extra}, options..., reduction, OptionalTensor());
    return run_forward(call, input, reduction, dtype, gradients);
  }

  // The gradient of the input overwrites it.
  static Tensors forward_inplace(FUSED_LOSSES_OPERANDS, Options... options, int64_t reduction,
                                 std::optional<ScalarType> dtype, int64_t gradients) {
    check_devices(input, target, weight, extra, options...);
    Call call({input, target, weight, extra}, options..., reduction, OptionalTensor());
    const View view(input);
    check_layout(view, call.gradient_layout(0), view.dtype);
    call.write_gradient(0, view);
    return run_forward(call, input, reduction, dtype, gradients & ~kInput);
  }

  static Tensors backward(const Tensor& upstream, FUSED_LOSSES_OPERANDS, Options... options, int64_t reduction,
                          int64_t gradients) {
    return run_backward(nullptr, false, upstream, {input, target, weight, extra}, options..., reduction, gradients);
  }

  // Into tensors that are there already.
  static void backward_into(const Tensors& into, bool ready, const Tensor& upstream, FUSED_LOSSES_OPERANDS,
                            Options... options, int64_t reduction, int64_t gradients) {
    run_backward(&into, ready, upstream, {input, target, weight, extra}, options..., reduction, gradients);
  }

 private:
  static Tensors run_forward(Call& call, const Tensor& like, int64_t reduction, std::optional<ScalarType> wanted_dtype,
                             int64_t gradients) {
    const ScalarType dtype = wanted_dtype.value_or(call.operand(0).dtype);
    Tensors results{Call::empty(reduction == kNone ? call.loss_layout() : Layout(0, nullptr), dtype, like)};
    const View loss(results[0]);
    if (reduction == kNone) call.write_losses(loss);
    if constexpr (Call::kHasStatistics) {
      if (gradients & kStatistics) {
        results.push_back(Call::empty(call.statistics_layout(), call.statistics_dtype(), like));
        call.write_statistics(View(results.back()));
      }
      if (gradients & kArgmax) {
        results.push_back(Call::empty(call.loss_layout(), ScalarType::Long, like));
        call.write_argmax(View(results.back()));
      }
    }
    want(call, like, gradients, nullptr, results);
    call.forward(reduction == kNone ? nullptr : &loss);
    return results;
  }

  static Tensors run_backward(const Tensors* into, bool ready, const Tensor& upstream, const Operands& operands,
                              Options... options, int64_t reduction, int64_t gradients) {
    check_devices(upstream, operands.input, operands.target, operands.weight, operands.extra, options...);
    if (into) check_devices(upstream, *into);
    Tensors results;
    Call call(operands, options..., reduction, reduction == kNone ? OptionalTensor(upstream) : OptionalTensor());
    want(call, operands.input, gradients, into, results);
    const View view(upstream);
    call.backward(reduction == kNone ? nullptr : &view, ready);
    return results;
  }

  // The gradients asked for, in order; `reuse` holds their tensors, if there are some already.
  static void want(Call& call, const Tensor& like, int64_t gradients, const Tensors* reuse, Tensors& results) {
    size_t next = 0;
    for (int k = 0; k < 3; ++k) {
      if (!(gradients & (kInput << k))) continue;
      const Layout layout = call.gradient_layout(k);
      const ScalarType dtype = call.operand(k).dtype;
      results.push_back(reuse ? reuse->at(next++) : Call::empty(layout, dtype, like));
      const View view(results.back());
      if (reuse) check_layout(view, layout, dtype);
      call.write_gradient(k, view);
    }
  }
};

#undef FUSED_LOSSES_OPERANDS

}  // namespace fused_losses
