// The four operators of a loss, for any engine: which tensors are made, and what is computed into them.
//
// A Call goes from tensors to the arguments of an engine, and refuses what the engine cannot take. It has
//   kHasStatistics  whether there are statistics of each row to keep for the backward; if so, also statistics_layout(),
//                   statistics_dtype(), write_statistics(view) and write_argmax(view)
//   kMostReduction  the last of the reductions that it knows
//   Call(operands, options..., reduction, upstream)  `upstream` is absent unless each loss has an upstream gradient
//   operand(k)            input, target or extra
//   derivatives()         the bits of the operands that there are derivatives for
//   gradient_layout(k), write_gradient(k, view)  the layout of the derivative with respect to operand k, and its memory
//   loss_layout(), write_losses(view)            the same for losses that are not reduced
//   empty(layout, dtype, like)  a new tensor on the device of `like`
//   forward(loss)   computes all, once all memory is known; the reduced loss goes to `loss`, null if there is none
//   backward(upstream, ready)  computes the derivatives; `upstream` is that of the reduced loss, null if each loss has
//   its
//                   own. If `ready`, the derivatives for an upstream gradient of 1 are there: if it is 1, they stay
#pragma once

#include <bit>
#include <type_traits>
#include <vector>

#include "tensor.h"

namespace fused_losses {

struct Operands {
  const Tensor &input, &target;
  const OptionalTensor &weight, &extra;
};

inline bool has_layout(const View& view, const Layout& layout, ScalarType dtype) {
  bool same = view.dims == layout.dims && view.dtype == dtype;
  for (int d = 0; same && d < view.dims; ++d) {
    // Where there are no elements or no second one, strides say nothing.
    const bool strides_matter = view.count > 0 && view.sizes[d] != 1;
    same = view.sizes[d] == layout.sizes[d] && (!strides_matter || view.strides[d] == layout.strides[d]);
  }
  return same;
}

inline void check_layout(const View& view, const Layout& layout, ScalarType dtype) {
  if (has_layout(view, layout, dtype)) return;
  refuse(view.name,
         "lie as the gradient that is written to it, " + text_of(dtype) + " of shape " +
             text_of(layout.dims, layout.sizes) + " and strides " + text_of(layout.dims, layout.strides),
         "it is " + view.text() + " and strides " + text_of(view.dims, view.strides));
}

inline void check_parameters(const std::vector<double>& parameters, size_t count) {
  if (parameters.size() == count) return;
  refuse("parameters", "hold as many numbers as the loss takes, " + std::to_string(count),
         "they are " + std::to_string(parameters.size()));
}

// What a mean divides by instead, as given to an operator: null if it is absent.
inline const double* normalizer_of(const OptionalTensor& normalizer) {
  if (!normalizer) return nullptr;
  const View view(*normalizer, "normalizer");
  if (view.dims != 0 || view.dtype != ScalarType::Double) refuse(view, "be float64 without dimensions");
  return static_cast<const double*>(view.data);
}

inline void check_absent(const OptionalTensor& tensor, const char* name) {
  if (tensor) refuse(View(*tensor, name), "be None");
}

#define FUSED_LOSSES_OPERANDS \
  const Tensor &input, const Tensor &target, const OptionalTensor &weight, const OptionalTensor &extra

template <Name loss_name, class Call, class... Options>
class LossOperators {
  using Tensors = std::vector<Tensor>;

 public:
  static void implement(torch::stable::detail::StableLibrary& m) {
    const std::string name = loss_name.text;
    m.impl(name.c_str(), TORCH_BOX(&forward));
    m.impl((name + "_").c_str(), TORCH_BOX(&forward_inplace));
    m.impl((name + "_backward").c_str(), TORCH_BOX(&backward));
    m.impl((name + "_backward_").c_str(), TORCH_BOX(&backward_into));
  }

  static Tensors forward(FUSED_LOSSES_OPERANDS, Options... options, int64_t reduction, std::optional<ScalarType> dtype,
                         int64_t gradients) {
    return named(loss_name.text, [&] {
      const Operands operands{input, target, weight, extra};
      check_forward(operands, options..., reduction, dtype);
      Call call(operands, options..., reduction, OptionalTensor());
      return run_forward(call, input, reduction, dtype, gradients);
    });
  }

  // The gradient of the input overwrites it.
  static Tensors forward_inplace(FUSED_LOSSES_OPERANDS, Options... options, int64_t reduction,
                                 std::optional<ScalarType> dtype, int64_t gradients) {
    return named(loss_name.text, [&] {
      const Operands operands{input, target, weight, extra};
      check_forward(operands, options..., reduction, dtype);
      Call call(operands, options..., reduction, OptionalTensor());
      const View view(input, "input");
      check_layout(view, call.gradient_layout(0), view.dtype);
      for_each_tensor(operands, options..., [&](const Tensor& tensor, const char* name) {
        if (&tensor != &input) check_disjoint(View(tensor, name), view);
      });
      call.write_gradient(0, view);
      return run_forward(call, input, reduction, dtype, gradients & ~kInput);
    });
  }

  static Tensors backward(const Tensor& upstream, FUSED_LOSSES_OPERANDS, Options... options, int64_t reduction,
                          int64_t gradients) {
    return named(loss_name.text, [&] {
      return run_backward(nullptr, false, upstream, {input, target, weight, extra}, options..., reduction, gradients);
    });
  }

  // Into tensors that are there already.
  static void backward_into(const Tensors& into, bool ready, const Tensor& upstream, FUSED_LOSSES_OPERANDS,
                            Options... options, int64_t reduction, int64_t gradients) {
    named(loss_name.text, [&] {
      run_backward(&into, ready, upstream, {input, target, weight, extra}, options..., reduction, gradients);
    });
  }

 private:
  // Calls visit(tensor, name) for each tensor among operands and options.
  template <class Visit>
  static void for_each_tensor(const Operands& operands, const Options&... options, const Visit& visit) {
    visit(operands.input, "input");
    visit(operands.target, "target");
    if (operands.weight) visit(*operands.weight, "weight");
    if (operands.extra) visit(*operands.extra, "extra");
    const char* const names[] = {"normalizer", "lse_gradient"};
    const char* const* next = names;
    const auto look = [&]<class Option>(const Option& option) {
      if constexpr (std::is_same_v<Option, OptionalTensor>) {
        const char* const name = *next++;
        if (option) visit(*option, name);
      }
    };
    (look(options), ...);
  }

  static void check_arguments(const Operands& operands, const Options&... options, int64_t reduction) {
    check_defined(operands.input, "input");
    for_each_tensor(operands, options..., [&](const Tensor& tensor, const char* name) {
      if (&tensor != &operands.input) check_device(tensor, name, operands.input, "input");
    });
    if (reduction >= kNone && reduction <= Call::kMostReduction) return;
    const bool has_batch_mean = Call::kMostReduction == kBatchMean;
    refuse("reduction",
           std::string("be 0 (none), 1 (mean)") + (has_batch_mean ? ", 2 (sum) or 3 (batchmean)" : " or 2 (sum)"),
           "it is " + std::to_string(reduction));
  }

  static void check_bits(int64_t gradients, int64_t known) {
    if ((gradients & ~known) == 0) return;
    const char* const names[] = {"input", "target", "extra", "statistics", "argmax"};
    std::string bits;
    for (int k = 0; k < 5; ++k) {
      if (known >> k & 1) bits += (bits.empty() ? "" : ", ") + std::to_string(1 << k) + " (" + names[k] + ")";
    }
    refuse("gradients", "be a sum of some of " + bits, "it is " + std::to_string(gradients));
  }

  static void check_forward(const Operands& operands, const Options&... options, int64_t reduction,
                            std::optional<ScalarType> dtype) {
    check_arguments(operands, options..., reduction);
    if (dtype && !is_floating(*dtype)) {
      refuse("dtype", std::string("be ") + kFloatingDtypes + " or None", "it is " + text_of(*dtype));
    }
    // What the forward has kept is for the backward.
    if constexpr (Call::kHasStatistics) check_absent(operands.extra, "extra");
  }

  static Tensors run_forward(Call& call, const Tensor& like, int64_t reduction, std::optional<ScalarType> wanted_dtype,
                             int64_t gradients) {
    check_bits(gradients, call.derivatives() | (Call::kHasStatistics ? kStatistics | kArgmax : 0));
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
    make_gradients(call, like, gradients, results);
    call.forward(reduction == kNone ? nullptr : &loss);
    return results;
  }

  static Tensors run_backward(const Tensors* into, bool ready, const Tensor& upstream, const Operands& operands,
                              Options... options, int64_t reduction, int64_t gradients) {
    check_arguments(operands, options..., reduction);
    check_device(upstream, "upstream", operands.input, "input");
    const View view(upstream, "upstream");
    check_floating(view);
    if (reduction != kNone && view.count != 1) refuse(view, "be one number, as the loss is");
    Tensors results;
    Call call(operands, options..., reduction, reduction == kNone ? OptionalTensor(upstream) : OptionalTensor());
    check_bits(gradients, call.derivatives());
    if (into) {
      take_gradients(call, *into, view, operands, options..., gradients);
    } else {
      make_gradients(call, operands.input, gradients, results);
    }
    call.backward(reduction == kNone ? nullptr : &view, ready);
    return results;
  }

  // The gradients asked for, in order.
  static void make_gradients(Call& call, const Tensor& like, int64_t gradients, Tensors& results) {
    for (int k = 0; k < 3; ++k) {
      if (!(gradients >> k & 1)) continue;
      results.push_back(Call::empty(call.gradient_layout(k), call.operand(k).dtype, like));
      call.write_gradient(k, View(results.back()));
    }
  }

  // The same, into tensors that are there already: nothing of them is read, but for the input's by the input itself.
  static void take_gradients(Call& call, const Tensors& into, const View& upstream, const Operands& operands,
                             const Options&... options, int64_t gradients) {
    std::vector<View> written;
    for (int k = 0; k < 3; ++k) {
      if (!(gradients >> k & 1)) continue;
      if (written.size() == into.size()) break;
      const Tensor& tensor = into[written.size()];
      check_device(tensor, "into", operands.input, "input");
      const View view(tensor, "into");
      check_layout(view, call.gradient_layout(k), call.operand(k).dtype);
      check_disjoint(upstream, view);
      for (const View& other : written) check_disjoint(other, view);
      for_each_tensor(operands, options..., [&](const Tensor& read, const char* name) {
        const View other(read, name);
        const bool is_overwritten = k == 0 && &read == &operands.input && other.data == view.data &&
                                    has_layout(other, call.gradient_layout(0), view.dtype);
        if (!is_overwritten) check_disjoint(other, view);
      });
      call.write_gradient(k, view);
      written.push_back(view);
    }
    const int count = std::popcount(static_cast<uint64_t>(gradients));
    if (into.size() != written.size() || static_cast<size_t>(count) != into.size()) {
      refuse("into", "hold a tensor for each bit of gradients, " + std::to_string(count),
             "it holds " + std::to_string(into.size()));
    }
  }
};

#undef FUSED_LOSSES_OPERANDS

}  // namespace fused_losses
