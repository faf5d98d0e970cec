// What there is for each position besides its logits: label, soft targets, weight and upstream gradient.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "gather.h"
#include "softmax_engine.h"
#include "storage.h"

#include "../formulas/cross_entropy.h"

namespace fused_losses {

// The soft targets q of a row, (classes): weight (kept probability + constant), where weights and probabilities may be
// absent. They are all 0, and absent() is true, where there are neither probabilities nor label smoothing.
template <class T>
struct SoftTarget {
  Operand probabilities;
  double kept = 0;      // 1 - label_smoothing, of the probabilities and of the label's weight
  double constant = 0;  // label_smoothing / classes
  const T* weight = nullptr;

  bool absent() const { return !probabilities.data && constant == 0; }

  // Writes q of classes [begin, begin + n) to `buffer`; `row` is where the row's probabilities begin. Their compute
  // type is T: SoftmaxArguments says so.
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

// A pointer to where the row of (outer, inner) begins, in a tensor whose storage type is S.
template <class S>
const S* at(const SoftmaxArguments& arguments, const ClassTensor& tensor, int64_t outer, int64_t inner) {
  return static_cast<const S*>(tensor.data) + offset_of(arguments, tensor.strides, outer, inner);
}

inline int64_t label_of(const SoftmaxArguments& arguments, int64_t outer, int64_t inner) {
  const ClassTensor& labels = arguments.labels;
  return labels.dtype == ScalarType::Byte ? *at<uint8_t>(arguments, labels, outer, inner)
                                          : *at<int64_t>(arguments, labels, outer, inner);
}

// Weights and soft targets of a call. The weights are gathered into an array of the compute type T.
template <class T>
struct Targets {
  const SoftmaxArguments& arguments;
  std::vector<T> weights;
  SoftTarget<T> soft;
  // Soft targets that are the same for all rows: those of each class, unless they are the same for all classes, too;
  // and their sum.
  std::vector<T> shared;
  double shared_mass = 0;

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
    if (soft.constant == 0 || soft.probabilities.data) return;
    shared_mass = smoothing;
    if (!soft.weight) return;
    shared.resize(classes);
    soft.fill(nullptr, 0, classes, shared.data());
    shared_mass = std::accumulate(shared.begin(), shared.end(), 0.0);
  }

  double weight(int64_t label) const { return weights.empty() ? 1 : static_cast<double>(weights[label]); }
};

// The same for a floating point tensor of any dtype; null, if it is absent.
inline const void* row_start(const SoftmaxArguments& arguments, const ClassTensor& tensor, int64_t outer,
                             int64_t inner) {
  if (!tensor.data) return nullptr;
  return with_storage(tensor.dtype, [&](auto storage) -> const void* {
    return at<decltype(storage)>(arguments, tensor, outer, inner);
  });
}

// The number at (outer, inner) of a tensor that has one for each position, or `absent` if there is no tensor.
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
