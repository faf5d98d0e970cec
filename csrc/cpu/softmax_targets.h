// What a row's target says: its label, its soft part, its weights, its upstream gradient.
#pragma once

#include <algorithm>
#include <vector>

#include "gather.h"
#include "softmax_engine.h"
#include "storage.h"

#include "../formulas/cross_entropy.h"

namespace fused_losses {

// The soft part q of a row's target: a constant or, with weights, the weights times it; or probabilities.
// Absent when scale, probabilities and constant are all 0.
template <class T>
struct SoftTarget {
  Operand probabilities;
  double kept = 0;
  double constant = 0;
  const T* weight = nullptr;

  bool absent() const { return !probabilities.data && constant == 0; }

  // q of classes [begin, begin + n); `row` is where the row's probabilities begin.
  void fill(const void* row, int64_t begin, int64_t n, T* buffer) const {
    const T base = static_cast<T>(constant);
    if (probabilities.data) {
      const T factor = static_cast<T>(kept);
      with_storage(probabilities.dtype, [&](auto storage) {
        using P = decltype(storage);
        if constexpr (std::is_same_v<Compute<P>, T>) {
          const P* const from = static_cast<const P*>(row) + begin;
          for_each_register<T>(
              n, [&](int64_t i, auto count) { store(buffer + i, load(from + i, count, 0) * factor + base, count); });
        }
      });
    } else {
      std::fill_n(buffer, n, base);
    }
    if (weight) {
      for (int64_t i = 0; i < n; ++i) buffer[i] *= weight[begin + i];
    }
  }
};

// Where the row (outer, inner) begins.
template <class S>
const S* at(const SoftmaxArguments& arguments, const ClassTensor& tensor, int64_t outer, int64_t inner) {
  return static_cast<const S*>(tensor.data) + offset_of(arguments, tensor.strides, outer, inner);
}

inline int64_t label_of(const SoftmaxArguments& arguments, int64_t outer, int64_t inner) {
  const ClassTensor& labels = arguments.labels;
  return labels.dtype == ScalarType::Byte ? *at<uint8_t>(arguments, labels, outer, inner)
                                          : *at<int64_t>(arguments, labels, outer, inner);
}

// What the kernels need to know of weights and targets, once per call.
template <class T>
struct Targets {
  const SoftmaxArguments& arguments;
  std::vector<T> weights;
  SoftTarget<T> soft;

  explicit Targets(const SoftmaxArguments& arguments_) : arguments(arguments_) {
    const double smoothing = arguments.label_smoothing;
    const int64_t classes = arguments.classes;
    if (arguments.weight.data) {
      weights.resize(classes);
      with_storage(arguments.weight.dtype, [&](auto storage) {
        using S = decltype(storage);
        gather_run(weights.data(), static_cast<const S*>(arguments.weight.data), arguments.weight.strides.classes,
                   classes);
      });
      soft.weight = weights.data();
    }
    soft.constant = smoothing / static_cast<double>(classes);
    soft.kept = 1 - smoothing;
    soft.probabilities.data = arguments.probabilities.data;
    soft.probabilities.dtype = arguments.probabilities.dtype;
  }

  double weight(int64_t label) const { return weights.empty() ? 1 : static_cast<double>(weights[label]); }
};

inline const void* row_start(const SoftmaxArguments& arguments, const ClassTensor& tensor, int64_t outer,
                             int64_t inner) {
  if (!tensor.data) return nullptr;
  return with_storage(tensor.dtype, [&](auto storage) -> const void* {
    return at<decltype(storage)>(arguments, tensor, outer, inner);
  });
}

// Of a tensor that has a number for each row, or `absent`.
inline double number_at(const SoftmaxArguments& arguments, const ClassTensor& tensor, int64_t outer, int64_t inner,
                        double absent) {
  if (!tensor.data) return absent;
  return load_as<double>(tensor.data, tensor.dtype, offset_of(arguments, tensor.strides, outer, inner));
}

inline double upstream_of(const SoftmaxArguments& arguments, int64_t outer, int64_t inner) {
  return number_at(arguments, arguments.upstream, outer, inner, 1);
}

inline void store_loss(const SoftmaxArguments& arguments, int64_t row, double value) {
  store_as(arguments.losses.data, arguments.losses.dtype, row, value);
}

}  // namespace fused_losses
