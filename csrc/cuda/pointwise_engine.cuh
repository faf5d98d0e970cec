// The pointwise engine on a GPU.
//
// To be read from the end: pointwise() is what operators call. It chooses the kernel, and the variant that this is
// compiled for: pointwise_packs_kernel() where all tensors are of one dtype, side by side and aligned, and a weight or
// pos_weight may be one of classes, else pointwise_runs_kernel() (runs.cuh). In every turn, both load all that a thread
// needs of it before they use the first number, so that enough bytes are on their way. walk() is the loop around both,
// PointwiseElements what they compute.
//
// Included by one file per group of formulas (pointwise_*.cu), so that groups compile side by side.
#pragma once

#include "pointwise_element.cuh"
#include "reduce.cuh"
#include "rounded.cuh"

namespace fused_losses {

// Packs of each operand that a thread takes in a turn, all of which are on their way at once. Those of three tensors
// leave registers for two, and so do conditions; those of four, for one.
template <class Formula, class Variant>
inline constexpr int kPacks = Variant::kThird && Variant::kFactors                                                 ? 1
                              : Variant::kThird || Variant::kFactors || (Formula::kConditions && Variant::kValues) ? 2
                                                                                                                   : 4;

// How many blocks of a kernel for packs a multiprocessor is to hold: as many as a launch has for each of an H100's.
inline constexpr int kPackBlocks = 8;

// Calls turn(begin) for each turn of this thread, which has `packs` packs of `size` elements: the u-th begins at
// element begin + u kThreads size. Then calls single(i) for its share of the elements that do not fill a whole block's
// turn.
template <int packs, int size, class Formula, class Turn, class Single>
__device__ inline void walk(const PointwiseKernel<Formula>& kernel, const Turn& turn, const Single& single) {
  constexpr int64_t kTile = kThreads * packs * size;
  const int64_t step = gridDim.x * kTile;
#pragma unroll 1
  for (int64_t begin = blockIdx.x * kTile; begin < kernel.whole; begin += step) turn(begin + threadIdx.x * size);
#pragma unroll 1
  for (int64_t i = kernel.whole + blockIdx.x * kThreads + threadIdx.x; i < kernel.iteration.of.count;
       i += gridDim.x * kThreads) {
    single(i);
  }
}

// What both kernels begin and end with. compute(elements) does this thread's part of the work.
template <class T, class Variant, class Formula, class Compute>
__device__ inline void with_elements(const PointwiseKernel<Formula>& kernel, const Compute& compute) {
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel.scaling);
  PointwiseElements<Formula, T, Variant> elements(kernel, upstream / divisor);
  compute(elements);
  elements.check_conditions();
  if constexpr (Variant::kValues) {
    if (kernel.reduced.loss) finish(elements.sum(), kernel.reduced, divisor);
  }
}

// All that a kernel reads of each element: the operands, and then the factors.
template <class Formula, class Variant>
struct Sources {
  static constexpr int kOperands = Variant::kThird ? 3 : 2, kCount = kOperands + Variant::kFactors;
  const PointwiseKernel<Formula>& kernel;

  __device__ const RunOperand& operator()(int k) const {
    return k < kOperands ? kernel.operands[k] : kernel.factors[k - kOperands];
  }
};

// Whether source k may begin anew after each period of it: a weight, or an operand that a loss can do without.
template <class Formula, class Variant>
constexpr bool may_repeat(int k) {
  return k >= Sources<Formula, Variant>::kOperands || (k == 2 && Formula::kOptionalThird);
}

// All tensors are side by side, aligned, and of type S.
template <class Formula, class T, class S, class Variant>
__global__ void __launch_bounds__(kThreads, kPackBlocks)
    pointwise_packs_kernel(const __grid_constant__ PointwiseKernel<Formula> kernel) {
  with_elements<T, Variant>(kernel, [&](auto& elements) {
    using Elements = std::remove_reference_t<decltype(elements)>;
    using From = Sources<Formula, Variant>;
    constexpr int kElements = kPack<S>;
    const From source{kernel};
    const auto turn = [&](int64_t begin) {
      Pack<S> packs[kPacks<Formula, Variant>][From::kCount];
      unrolled<kPacks<Formula, Variant>>([&](int u) {
        unrolled<From::kCount>([&](int k) {
          const auto* const data = static_cast<const S*>(source(k).data);
          packs[u][k] = may_repeat<Formula, Variant>(k)
                            ? load_pack<S>(data + source(k).in_period(begin + u * kThreads * kElements), 0)
                            : load_pack<S>(data + begin, u * kThreads);
        });
      });
      unrolled<kPacks<Formula, Variant>>([&](int u) {
        typename Elements::template Inputs<kElements> inputs;
        unrolled<From::kOperands>([&](int k) { unpack(packs[u][k], inputs.operands[k]); });
        if constexpr (Variant::kFactors == 1) unpack(packs[u][From::kOperands], inputs.factors);
        Elements::store_all(elements(inputs), kernel, [&](const Result& to, const T* some) {
          store_pack(static_cast<S*>(to.data) + begin, u * kThreads, packed<S>(some));
        });
      });
    };
    walk<kPacks<Formula, Variant>, kElements>(kernel, turn, [&](int64_t i) {
      elements.one(kernel, i, [&](const RunOperand& operand) {
        const int64_t place = operand.contiguous ? i : operand.in_period(i);
        return static_cast<T>(static_cast<Compute<S>>(static_cast<const S*>(operand.data)[place]));
      });
    });
  });
}

// Operands of any dtypes and layouts. Elements of float64 are taken one by one.
template <class Formula, class T, class Variant>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pointwise_runs_kernel(const __grid_constant__ PointwiseKernel<Formula> kernel) {
  with_elements<T, Variant>(kernel, [&](auto& elements) {
    using Elements = std::remove_reference_t<decltype(elements)>;
    using From = Sources<Formula, Variant>;
    const From source{kernel};
    const auto turn = [&](int64_t begin) {
      Run runs[From::kCount];
      const RunPlace<From::kCount> place(begin, source, kernel.iteration);
      unrolled<From::kCount>([&](int k) {
        if (k < From::kOperands || source(k).data) runs[k] = load_run(source(k), kernel.iteration, place, k);
      });
      typename Elements::template Inputs<kRun> inputs;
      unrolled<From::kOperands>([&](int k) { unpack(runs[k], source(k).dtype, inputs.operands[k]); });
      if constexpr (Variant::kFactors > 0) {
        unrolled<kRun>([&](int i) { inputs.factors[i] = splat<T>(1); });
        unrolled<Variant::kFactors>([&](int f) {
          if (!kernel.factors[f].data) return;
          T some[kRun];
          unpack(runs[From::kOperands + f], kernel.factors[f].dtype, some);
          unrolled<kRun>([&](int i) { inputs.factors[i] = inputs.factors[i] * some[i]; });
        });
      }
      Elements::store_all(elements(inputs), kernel,
                          [&](const Result& to, const T* some) { store_run(to, begin, some); });
    };
    const auto single = [&](int64_t i) {
      elements.one(kernel, i, [&](const RunOperand& operand) {
        return load_as<T>(operand.data, operand.dtype, offset_of(operand, kernel.iteration, i));
      });
    };
    if constexpr (std::is_same_v<T, double>) {
      walk<1, kRun>(kernel, [](int64_t) {}, single);
    } else {
      walk<1, kRun>(kernel, turn, single);
    }
  });
}

template <class Formula>
bool has_factors(const PointwiseKernel<Formula>& kernel) {
  return kernel.factors[0].data || kernel.factors[1].data || kernel.has_ignored;
}

template <class Formula>
bool has_double(const PointwiseKernel<Formula>& kernel) {
  return std::any_of(std::begin(kernel.operands), std::end(kernel.operands),
                     [](const Operand& x) { return x.data && x.dtype == ScalarType::Double; });
}

template <class Formula>
bool has_aligned_results(const PointwiseKernel<Formula>& kernel) {
  return is_aligned(kernel.values.data) && std::all_of(std::begin(kernel.derivatives), std::end(kernel.derivatives),
                                                       [](const Result& x) { return is_aligned(x.data); });
}

// Which derivatives are wanted, as bits of Wanted.
template <class Formula>
int wanted_of(const PointwiseKernel<Formula>& kernel) {
  int wanted = 0;
  for (int k = 0; k < 3; ++k) wanted |= kernel.derivatives[k].data ? 1 << k : 0;
  return wanted;
}

// Whether all tensors are of the first one's dtype and aligned, and side by side but for those that may repeat. With a
// factor, there are kernels for the first derivative, which is what training asks for, and no others.
template <class Formula>
bool is_packed(const PointwiseKernel<Formula>& kernel) {
  const ScalarType dtype = kernel.operands[0].dtype;
  const auto of_dtype = [&](const auto& x) { return !x.data || x.dtype == dtype; };
  const auto is_whole = [&](const RunOperand& x) { return !x.data || (of_dtype(x) && x.aligned && x.contiguous); };
  const auto repeats = [&](const RunOperand& x) { return !x.data || (of_dtype(x) && x.aligned && x.period); };
  const auto& [input, target, third] = kernel.operands;
  const auto& [weight, upstream] = kernel.factors;
  const bool one = !kernel.has_ignored && !(weight.data && upstream.data) && wanted_of(kernel) == kInput;
  return is_whole(input) && is_whole(target) && (Formula::kOptionalThird ? repeats(third) : is_whole(third)) &&
         (!has_factors(kernel) || (one && repeats(weight) && repeats(upstream))) && has_aligned_results(kernel) &&
         of_dtype(kernel.values) && std::all_of(std::begin(kernel.derivatives), std::end(kernel.derivatives), of_dtype);
}

// Whether approximations are good enough: the results have 16 bits each, and so have the operands of functions. A
// float32 loss is computed in float32, whatever the operands are, as by torch under autocast.
template <class Formula>
bool is_rounded(const PointwiseKernel<Formula>& kernel) {
  const auto rounds = [](const auto& x, const void* data) {
    return !data || x.dtype == ScalarType::BFloat16 || x.dtype == ScalarType::Half;
  };
  bool rounded = rounds(kernel.reduced, kernel.reduced.loss) && rounds(kernel.values, kernel.values.data);
  for (int k = 0; k < 3; ++k) {
    rounded = rounded && rounds(kernel.derivatives[k], kernel.derivatives[k].data);
    if (Formula::kFunctionsOf >> k & 1) rounded = rounded && rounds(kernel.operands[k], kernel.operands[k].data);
  }
  return rounded;
}

// A condition that is known to be false where it is not possible.
template <bool possible>
auto if_possible(bool condition) {
  if constexpr (possible) {
    return condition;
  } else {
    return std::false_type{};
  }
}

// Calls body with a std::bool_constant for each of the conditions.
template <class Body>
void with_constants(const Body& body) {
  body();
}
template <class Body, class Condition, class... Others>
void with_constants(const Body& body, Condition condition, Others... others) {
  const auto with_others = [&](auto... constants) {
    if constexpr (std::is_same_v<Condition, std::false_type>) {
      body(condition, constants...);
    } else if (condition) {
      body(std::true_type{}, constants...);
    } else {
      body(std::false_type{}, constants...);
    }
  };
  with_constants(with_others, others...);
}

// Launches the kernel for what is asked for: in packs of S, or in runs where S is void.
template <class Formula, class T, class S>
void launch_pointwise(PointwiseKernel<Formula>& kernel, const Queue& queue) {
  constexpr bool kInRuns = std::is_void_v<S>, kIsDouble = std::is_same_v<T, double>;
  const auto launch_variant = [&](auto values, auto first, auto pair, auto other, auto third, auto factors, auto flag) {
    // There are fewer kernels in runs, and one in float64, for everything: they look for what is to be stored.
    constexpr bool kLooks = other || kIsDouble || (kInRuns && !first);
    constexpr Factors kFactors = kIsDouble || (kInRuns && factors) ? Factors::kAll
                                 : factors                         ? Factors::kOne
                                                                   : Factors::kNone;
    constexpr Derivatives kDerivatives = kLooks  ? Derivatives::kAll
                                         : pair  ? Derivatives::kPair
                                         : first ? Derivatives::kFirst
                                                 : Derivatives::kNone;
    using Variant = PointwiseVariant<values || kIsDouble || !first, kDerivatives,
                                     Formula::kOperands == 3 && (third || !Formula::kOptionalThird), kFactors, flag>;
    const auto launch_kernel = [&](auto run, int64_t turn) {
      const int64_t count = kernel.iteration.of.count, tile = kThreads * turn;
      kernel.whole = kIsDouble || !has_aligned_results(kernel) ? 0 : count / tile * tile;
      const int64_t rest = (count - kernel.whole + kThreads - 1) / kThreads;
      // At least one block, which writes the loss where there are no elements.
      const int64_t blocks = std::clamp<int64_t>(std::max(kernel.whole / tile, rest), 1, kPointwiseBlocks);
      launch(run, queue, static_cast<int>(blocks), kThreads, kernel);
    };
    if constexpr (kInRuns) {
      launch_kernel(pointwise_runs_kernel<Formula, T, Variant>, kRun);
    } else if constexpr (kFactors == Factors::kNone || kDerivatives == Derivatives::kFirst) {  // see is_packed()
      launch_kernel(pointwise_packs_kernel<Formula, T, S, Variant>, kPacks<Formula, Variant> * kPack<S>);
    }
  };
  const int wanted = wanted_of(kernel);
  const bool pair = wanted == Formula::kPair;
  with_constants(launch_variant, kernel.reduced.loss || kernel.values.data, wanted != 0,
                 if_possible<Formula::kPair != 0>(pair), if_possible<(Formula::kDerivatives > 1)>(wanted > 1 && !pair),
                 if_possible<Formula::kOptionalThird>(kernel.operands[2].data),
                 if_possible<!kIsDouble>(has_factors(kernel)), if_possible<Formula::kHasFlag>(kernel.formula.flag()));
}

template <class Formula>
void pointwise(const PointwiseArguments& arguments, const Scaling& scaling, const Reduced& reduced,
               const Queue& queue) {
  PointwiseKernel<Formula> kernel(arguments, scaling, reduced);
  if (!kernel.factors[0].data) std::swap(kernel.factors[0], kernel.factors[1]);  // the only one is the first
  if (has_double(kernel)) return launch_pointwise<Formula, double, void>(kernel, queue);
  const bool in_packs = is_packed(kernel);
  const ScalarType dtype = kernel.operands[0].dtype;
  if constexpr (Formula::kFunctionsOf == 0) {
    if (in_packs && dtype == ScalarType::BFloat16) return launch_pointwise<Formula, float, BFloat16>(kernel, queue);
    if (in_packs && dtype == ScalarType::Half) return launch_pointwise<Formula, float, Half>(kernel, queue);
  } else if (is_rounded(kernel)) {
    // In runs, what is good enough for float16 serves bfloat16, too.
    if (!in_packs) return launch_pointwise<Formula, Rounded<Half>, void>(kernel, queue);
    if (dtype == ScalarType::Half) return launch_pointwise<Formula, Rounded<Half>, Half>(kernel, queue);
    return launch_pointwise<Formula, Rounded<BFloat16>, BFloat16>(kernel, queue);
  }
  if (in_packs && dtype == ScalarType::Float) return launch_pointwise<Formula, float, float>(kernel, queue);
  launch_pointwise<Formula, float, void>(kernel, queue);
}

}  // namespace fused_losses

#define FUSED_LOSSES_INSTANTIATE_POINTWISE(name, Formula) \
  template void pointwise<Formula>(const PointwiseArguments&, const Scaling&, const Reduced&, const Queue&);
