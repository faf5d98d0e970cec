// What a row's target says: its label, its soft part, its weights, its upstream gradient.
#pragma once

#include <algorithm>
#include <vector>

#include "gather.h"
#include "softmax_engine.h"
#include "storage.h"

#include "../formulas/cross_entropy.h"

namespace fused_losses {

// Elements of a block of rows, and of the stretch of a long row that one thread takes; a multiple of kChunk.
// The cut depends on sizes only: any number of threads adds the same numbers in the same order.
inline constexpr int64_t kStretch = 32 * kChunk;

// The soft part q of a row's target: a constant or, with weights, the weights times it; or probabilities.
// Absent when scale, probabilities and constant are all 0.
template <class T>
struct SoftTarget {
  Operand probabilities;
  double from_probabilities = 0;
  double constant = 0;
  const T* weight = nullptr;

  bool absent() const { return !probabilities.data && constant == 0; }

  // q of classes [begin, begin + n); `row` is where the row's probabilities begin.
  const T* chunk(const void* row, int64_t begin, int64_t n, T* buffer) const {
    const T base = static_cast<T>(constant);
    if (probabilities.data) {
      const T factor = static_cast<T>(from_probabilities);
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
    return buffer;
  }
};

// Where the row (outer, inner) begins.
template <class S>
const S* at(const SoftmaxArguments& arguments, const ClassTensor& tensor, int64_t outer, int64_t inner) {
  int64_t offset = inner * tensor.strides.inner;
  for (int d = arguments.outer_dims - 1; d > 0; --d) {
    offset += outer % arguments.outer_sizes[d] * tensor.strides.outer[d];
    outer /= arguments.outer_sizes[d];
  }
  if (arguments.outer_dims > 0) offset += outer * tensor.strides.outer[0];
  return static_cast<const S*>(tensor.data) + offset;
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
  double hot_factor = 1;

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
    soft.from_probabilities = 1 - smoothing;
    soft.probabilities.data = arguments.probabilities.data;
    soft.probabilities.dtype = arguments.probabilities.dtype;
    hot_factor = 1 - smoothing;
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
  return with_storage(tensor.dtype, [&](auto storage) -> double {
    using U = decltype(storage);
    return static_cast<Compute<U>>(*at<U>(arguments, tensor, outer, inner));
  });
}

inline double upstream_of(const SoftmaxArguments& arguments, int64_t outer, int64_t inner) {
  return number_at(arguments, arguments.upstream, outer, inner, 1);
}

inline void store_loss(const SoftmaxArguments& arguments, int64_t row, double value) {
  with_storage(arguments.losses.dtype, [&](auto storage) {
    using L = decltype(storage);
    static_cast<L*>(arguments.losses.data)[row] = static_cast<L>(static_cast<Compute<L>>(value));
  });
}

}  // namespace fused_losses
