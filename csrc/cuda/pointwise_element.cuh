// What happens to the elements of a pointwise loss, around the formula (formulas/*.h).
#pragma once

#include "../formulas/pointwise.h"
#include "pointwise_engine.h"
#include "runs.cuh"

namespace fused_losses {

// The derivatives that a kernel computes and stores: none, the first, the formula's pair, or those of all for which
// there is memory.
enum class Derivatives { kNone, kFirst, kPair, kAll };

// What elements are multiplied by: nothing, one factor, or the factors for which there is memory. Only of the last may
// elements be ignored.
enum class Factors { kNone, kOne, kAll };

// What a kernel is compiled for: it computes nothing else.
template <bool values, Derivatives derivatives, bool third, Factors factors, bool flag>
struct PointwiseVariant {
  static constexpr bool kValues = values;  // added up, and stored if there is memory for them
  static constexpr Derivatives kDerivatives = derivatives;
  static constexpr bool kThird = third;  // whether there is a third operand
  static constexpr int kFactors = factors == Factors::kAll ? 2 : factors == Factors::kOne ? 1 : 0;
  static constexpr bool kIgnores = factors == Factors::kAll;
  static constexpr bool kFlag = flag;  // the formula's
};

// A launch of the pointwise engine.
template <class Formula>
struct PointwiseKernel {
  Formula formula;
  RunIteration iteration;
  RunOperand operands[3], factors[2];
  Result values, derivatives[3];
  bool has_ignored;
  double ignored;
  int64_t whole = 0;  // how many elements are taken in turns of whole blocks; the others follow one by one
  Scaling scaling;
  Reduced reduced;

  PointwiseKernel(const PointwiseArguments& arguments, const Scaling& scaling_, const Reduced& reduced_)
      : formula(arguments.parameters),
        iteration(arguments.iteration),
        operands{
            {arguments.operands[0], iteration}, {arguments.operands[1], iteration}, {arguments.operands[2], iteration}},
        factors{{arguments.factors[0], iteration}, {arguments.factors[1], iteration}},
        values(arguments.values),
        derivatives{arguments.derivatives[0], arguments.derivatives[1], arguments.derivatives[2]},
        has_ignored(arguments.has_ignored),
        ignored(arguments.ignored),
        scaling(scaling_),
        reduced(reduced_) {}
};

// Computes elements in type T, adds up their values, and remembers whether all have met the formula's conditions.
template <class Formula, class T, class Variant>
class PointwiseElements {
 public:
  static constexpr int kOperands = Variant::kThird ? 3 : 2;
  // As bits of Wanted.
  static constexpr int kComputed = Variant::kDerivatives == Derivatives::kNone    ? 0
                                   : Variant::kDerivatives == Derivatives::kFirst ? kInput
                                   : Variant::kDerivatives == Derivatives::kPair  ? Formula::kPair
                                                                                  : kInput | kTarget | kExtra;
  template <class Body>
  __device__ static void each_derivative(const Body& body) {
    unrolled<Formula::kDerivatives>([&](int k) {
      if (kComputed >> k & 1) body(k);
    });
  }

  template <int count>
  struct Inputs {
    T operands[kOperands][count];
    T factors[Variant::kFactors ? count : 1];  // the product of all factors of an element
  };
  template <int count>
  struct Outputs {
    T values[count];
    T derivatives[Formula::kDerivatives][count];
  };

  __device__ PointwiseElements(const PointwiseKernel<Formula>& kernel, double scale)
      : formula_(kernel.formula),
        scale_(static_cast<T>(scale)),
        ignored_(static_cast<T>(kernel.ignored)),
        has_ignored_(kernel.has_ignored) {
    if constexpr (Formula::kHasFlag) formula_.set_flag(Variant::kFlag);
    unrolled<kConditions>([&](int k) { met_[k] = true; });
  }

  template <int count>
  __device__ Outputs<count> operator()(const Inputs<count>& inputs) {
    Outputs<count> outputs{};
    unrolled<count>([&](int i) {
      T x[kOperands];
      unrolled<kOperands>([&](int k) { x[k] = inputs.operands[k][i]; });
      const auto call = [&](const auto& function) {
        if constexpr (kOperands == 3) {
          return function(x[0], x[1], x[2]);
        } else {
          return function(x[0], x[1]);
        }
      };
      const bool counts = !(Variant::kIgnores && Formula::kIgnores && has_ignored_ && x[1] == ignored_);
      if constexpr (kConditions > 0) {
        unrolled<kConditions>([&](int k) {
          met_[k] = met_[k] & (call([&](auto... each) { return Formula::holds(k, each...); }) | !counts);
        });
      }
      const auto terms = call([&](auto... each) { return formula_.terms(each...); });
      T value = terms.value, slope = scale_;
      if constexpr (Variant::kFactors > 0) {
        value = value * inputs.factors[i];
        slope = slope * inputs.factors[i];
      }
      if constexpr (Variant::kIgnores) value = select(counts, value, splat<T>(0));
      outputs.values[i] = value;
      if constexpr (Variant::kValues) sum_ += value;
      each_derivative([&](int k) {
        const T derivative =
            call([&](auto... each) { return formula_.scaled(k, terms.derivative[k], slope, each...); });
        outputs.derivatives[k][i] = Variant::kIgnores ? select(counts, derivative, splat<T>(0)) : derivative;
      });
    });
    return outputs;
  }

  // Calls store(result, elements) for all that is wanted of some elements.
  template <int count, class Store>
  __device__ static void store_all(const Outputs<count>& outputs, const PointwiseKernel<Formula>& kernel,
                                   const Store& store) {
    each_derivative([&](int k) {
      const bool wanted = Variant::kDerivatives != Derivatives::kAll || kernel.derivatives[k].data;
      if (wanted) store(kernel.derivatives[k], outputs.derivatives[k]);
    });
    if constexpr (Variant::kValues) {
      if (kernel.values.data) store(kernel.values, outputs.values);
    }
  }

  // Element i by itself. load(operand) is its element of an operand that is there.
  template <class Load>
  __device__ void one(const PointwiseKernel<Formula>& kernel, int64_t i, const Load& load) {
    Inputs<1> inputs;
    unrolled<kOperands>([&](int k) { inputs.operands[k][0] = load(kernel.operands[k]); });
    inputs.factors[0] = splat<T>(1);
    unrolled<Variant::kFactors>([&](int k) {
      if (kernel.factors[k].data) inputs.factors[0] = inputs.factors[0] * load(kernel.factors[k]);
    });
    store_all((*this)(inputs), kernel,
              [&](const Result& to, const T* value) { store_as(to.data, to.dtype, i, *value); });
  }

  __device__ double sum() const { return static_cast<double>(sum_); }

  // Ends all work on the device if an element has not met a condition.
  __device__ void check_conditions() const {
    if constexpr (kConditions > 0) unrolled<kConditions>([&](int k) { check(met_[k], Formula::refusal(k)); });
  }

 private:
  // A backward need not check what its forward has.
  static constexpr int kConditions = Variant::kValues ? Formula::kConditions : 0;

  Formula formula_;
  T scale_, ignored_, sum_ = splat<T>(0);
  bool has_ignored_;
  bool met_[std::max(kConditions, 1)];
};

}  // namespace fused_losses
