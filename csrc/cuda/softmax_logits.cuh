// What the logits of a softmax are made of, and its soft targets, for classes that lie side by side.
#pragma once

#include "rounded.cuh"
#include "softmax_targets.cuh"

namespace fused_losses {

// What a kernel for rows is compiled for.
//   Soft    soft targets: none; equal ones, by label smoothing without weights; or any
//   Terms   what is done to logits: nothing; a softcap of 16-bit logits, up to kMostCap; or whatever there is, with an
//           entropy
enum class Soft { kNone, kEqual, kAny };
enum class Terms { kNone, kCapped, kAny };

// Whether a thread needs few registers: not for any soft targets, any terms and float64.
template <class T, Soft soft, Terms terms>
inline constexpr bool kIsLean = sizeof(T) == sizeof(float) && soft != Soft::kAny && terms != Terms::kAny;

// The softcap up to which approximate functions are right to 2^-15.
inline constexpr double kMostCap = 128;

// The logit of the softmax that is made of a given one, and its derivative.
template <class T>
struct Mapped {
  T x, slope;
};

template <class T, Terms terms>
class Logits {
 public:
  __device__ explicit Logits(const SoftmaxTerms& terms_of_call)
      : map_(terms_of_call), descend_(terms == Terms::kAny && terms_of_call.logit_scale < 0) {}

  __device__ Mapped<T> operator()(T given) const {
    if constexpr (terms == Terms::kNone) return {given, T(1)};
    const T x = map_.value(given);
    return {x, map_.slope(x)};
  }

  // Whether the largest logit is made of the smallest given one.
  __device__ bool descend() const { return descend_; }

 private:
  const LogitMap<T> map_;
  const bool descend_;
};

// cap tanh(u) = cap - 2 cap r, where r = 1 / (1 + e^(2 u)), by the GPU's own instructions. The derivative of tanh(u) is
// 4 (r - r^2).
template <>
class Logits<float, Terms::kCapped> {
 public:
  __device__ explicit Logits(const SoftmaxTerms& terms)
      : inner_(static_cast<float>(terms.logit_scale / terms.softcap) * (2 * approximate::kLog2e)),
        cap_(static_cast<float>(terms.softcap)),
        scale_(static_cast<float>(4 * terms.logit_scale)) {}

  __device__ Mapped<float> operator()(float given) const {
    const float r = divide_by_normal(1.0f, 1 + approximate::exp2(given * inner_));
    return {multiply_add(r, -2 * cap_, cap_), multiply_add(-r, r, r) * scale_};
  }

  __device__ bool descend() const { return inner_ < 0; }

 private:
  const float inner_, cap_, scale_;
};

// Loads and stores a number of any dtype. Functions of their own, since a row needs so many
// of them in so many places.
template <class T>
FUSED_LOSSES_NOINLINE __device__ T load_any(const void* data, ScalarType dtype, int64_t i) {
  return load_as<T>(data, dtype, i);
}
template <class T>
FUSED_LOSSES_NOINLINE __device__ void store_any(void* data, ScalarType dtype, int64_t i, T value) {
  store_as(data, dtype, i, value);
}

// Whether numbers from i on are a pack of S in memory.
template <class S>
__device__ inline bool is_pack(const ClassTensor& tensor, int64_t i) {
  return tensor.dtype == kScalarType<S> && tensor.strides.classes == 1 &&
         is_aligned(static_cast<const S*>(tensor.data) + i);
}

// `count` neighbouring numbers of a tensor, from number i on; and below, how they are stored.
template <class S, int count>
__device__ inline void load_neighbours(const ClassTensor& tensor, int64_t i, Compute<S>* to) {
  if constexpr (count == kPack<S>) {
    if (is_pack<S>(tensor, i)) return unpack(load_pack<S>(static_cast<const S*>(tensor.data) + i, 0), to);
  }
  unrolled<count>(
      [&](int j) { to[j] = load_any<Compute<S>>(tensor.data, tensor.dtype, (i + j) * tensor.strides.classes); });
}
template <class S, int count>
__device__ inline void store_neighbours(const ClassTensor& tensor, int64_t i, const Compute<S>* values) {
  if constexpr (count == kPack<S>) {
    if (is_pack<S>(tensor, i)) return store_pack(static_cast<S*>(tensor.data) + i, 0, packed<S>(values));
  }
  unrolled<count>([&](int j) { store_any(tensor.data, tensor.dtype, (i + j) * tensor.strides.classes, values[j]); });
}

// The soft targets of a row: probabilities, smoothed and weighted.
template <class S>
class SoftTargets {
  using T = Compute<S>;

 public:
  __device__ SoftTargets(const SoftmaxArguments& tensors)
      : tensors_(tensors),
        keep_(static_cast<T>(1 - tensors.label_smoothing)),
        constant_(static_cast<T>(tensors.label_smoothing / static_cast<double>(tensors.classes))) {}

  __device__ bool has_probabilities() const { return tensors_.probabilities.data; }
  __device__ void start(const Position& position) {
    if (!has_probabilities()) return;
    row_ = offset_of(tensors_, tensors_.probabilities.strides, position);
    if (tensors_.probabilities_gradient.data)
      gradient_row_ = offset_of(tensors_, tensors_.probabilities_gradient.strides, position);
  }

  // The soft targets of `count` classes from c on.
  template <int count>
  __device__ void load(int c, T* q) const {
    if (has_probabilities()) {
      load_neighbours<S, count>(tensors_.probabilities, row_ + c, q);
      unrolled<count>([&](int j) { q[j] = multiply_add(q[j], keep_, constant_); });
    } else {
      unrolled<count>([&](int j) { q[j] = constant_; });
    }
    weigh<count>(c, q);
  }

  // The sum of those from c on.
  template <int count>
  __device__ T mass(int c) const {
    T q[count], sum = 0;
    load<count>(c, q);
    unrolled<count>([&](int j) { sum += q[j]; });
    return sum;
  }

  // Stores the gradients with respect to the probabilities of `count` classes from c on, whose logits are x.
  template <int count>
  __device__ void differentiate(T reference, T log_sum, T slope, const T* x, int c) const {
    const ClassTensor& to = tensors_.probabilities_gradient;
    T made[count];
    unrolled<count>([&](int j) { made[j] = (reference - x[j] + log_sum) * (keep_ * slope); });
    weigh<count>(c, made);
    store_neighbours<S, count>(to, gradient_row_ + c, made);
  }

  // Each of them, where all are equal.
  __device__ T constant() const { return constant_; }

 private:
  // Multiplies numbers of `count` classes from c on by their weights.
  template <int count>
  __device__ void weigh(int c, T* numbers) const {
    if (!tensors_.weight.data) return;
    T w[count];
    load_neighbours<S, count>(tensors_.weight, c, w);
    unrolled<count>([&](int j) { numbers[j] *= w[j]; });
  }

  const SoftmaxArguments& tensors_;
  const T keep_, constant_;
  int64_t row_ = 0, gradient_row_ = 0;
};

}  // namespace fused_losses
