// The pointwise engine on the CPU. Operands that do not lie ready are gathered chunk by chunk into the first-level
// cache; then one loop of vector instructions makes value and derivatives together. How work is cut is said in
// blocks.h.
//
// To be read from the end: pointwise() is what operators call. It and choose_variant() look at what is asked for,
// choose_storage() at dtypes and layouts, and both pick a LoopVariant, for which all below is compiled. run_pointwise()
// cuts the elements into blocks for threads, run_block() gathers the operands of a chunk and delivers its results, and
// run_chunk() is the loop around the formula (formulas/*.h).
//
// Included by one file per group of formulas (pointwise_*.cpp), so that groups compile side by side.
#pragma once

#include "pointwise_engine.h"

#include <algorithm>
#include <atomic>
#include "pointwise_blocks.h"

namespace fused_losses {

// A thread takes at least kStretch elements, which are worth waking it.
inline constexpr int64_t kBlocksPerThread = kStretch / kBlock;

enum class Values { kUnused, kSummed, kStored };
enum class Derivatives { kNone, kFirst, kAll };

// The choices that a loop over one chunk is compiled for.
struct LoopVariant {
  Values values;
  Derivatives derivatives;
  bool factor;   // multiply by factor[i]
  bool ignored;  // skip elements whose target is `ignored`
};

// The operands and results of one chunk, as arrays of `count` elements of type S; factors are in the compute type.
template <class S>
struct Chunk {
  using T = Compute<S>;
  const S* operands[3];
  const T* factor;
  T ignored;
  T scale;
  S* values;
  S* derivatives[3];
  bool streamed[3];
  int64_t count;
};

struct ChunkResult {
  double sum = 0;
  unsigned unmet = 0;  // bit k: whether the formula's k-th condition is not met by all elements
};

// Whether a mask is set in all lanes.
template <class Mask>
bool all_set(Mask mask) {
  constexpr int lanes = sizeof(Mask) / sizeof(mask[0]);
  bool all = true;
  for (int i = 0; i < lanes; ++i) all &= mask[i] != 0;
  return all;
}

// Bit k: whether an element of the chunk does not meet the formula's k-th condition. Called only if one does not.
template <LoopVariant variant, int kOperands, class Formula, class S>
[[gnu::noinline]] unsigned unmet_conditions(const Chunk<S>& chunk) {
  using T = Compute<S>;
  unsigned unmet = 0;
  for (int64_t i = 0; i < chunk.count; ++i) {
    T x[3]{};
    for (int k = 0; k < kOperands; ++k) x[k] = static_cast<T>(chunk.operands[k][i]);
    if (variant.ignored && x[1] == chunk.ignored) continue;
    for (int k = 0; k < Formula::kConditions; ++k) {
      bool holds;
      if constexpr (kOperands == 3) {
        holds = Formula::holds(k, x[0], x[1], x[2]);
      } else {
        holds = Formula::holds(k, x[0], x[1]);
      }
      if (!holds) unmet |= 1u << k;
    }
  }
  return unmet;
}

// One chunk. kOperands is 2 or 3, since the third operand of some formulas may be absent. The formula is a copy: of its
// numbers in memory, a compiler would have to think that each store may change them.
template <LoopVariant variant, int kOperands, class Formula, class S>
ChunkResult run_chunk(const Formula formula, const Chunk<S>& chunk) {
  using T = Compute<S>;
  using V = Vector<T>;
  const V zero{};
  V sum{}, partial{};
  auto unmet = zero != zero;
  const auto one_register = [&](int64_t i, auto count) {
    V operands[3];
    for (int k = 0; k < kOperands; ++k) operands[k] = load(chunk.operands[k] + i, count, 0);
    const V t = operands[1];
    const auto call = [&](const auto& function) {
      if constexpr (kOperands == 3) {
        return function(operands[0], operands[1], operands[2]);
      } else {
        return function(operands[0], operands[1]);
      }
    };
    const auto terms = call([&](auto... each) { return formula.terms(each...); });
    V factor{};
    if constexpr (variant.factor) factor = load(chunk.factor + i, count, 0);
    const auto finish = [&](V v) {
      if constexpr (variant.factor) v *= factor;
      if constexpr (variant.ignored) v = select(t == chunk.ignored, zero, v);
      return v;
    };
    if constexpr (Formula::kConditions > 0) {
      auto good = call([&](auto... each) { return formula.holds(0, each...); });
      for (int k = 1; k < Formula::kConditions; ++k) {
        good &= call([&](auto... each) { return formula.holds(k, each...); });
      }
      if constexpr (variant.ignored) good |= t == chunk.ignored;
      // The lanes beyond the end hold zeros, which may not meet a condition, and do not count.
      if constexpr (std::is_same_v<decltype(count), int>) good |= ~first_lanes<V>(count);
      unmet |= ~good;
    }
    if constexpr (variant.values == Values::kSummed) {
      V value = finish(terms.value);
      if constexpr (std::is_same_v<decltype(count), int>) value = keep_lanes(value, count, 0);
      partial += value;
    }
    if constexpr (variant.values == Values::kStored) store(chunk.values + i, finish(terms.value), count);
    if constexpr (variant.derivatives != Derivatives::kNone) {
      V scale = zero + chunk.scale;
      if constexpr (variant.factor) scale *= factor;
      constexpr int wanted = variant.derivatives == Derivatives::kFirst ? 1 : Formula::kDerivatives;
      for (int k = 0; k < wanted; ++k) {
        V v = call([&](auto... each) { return formula.scaled(k, terms.derivative[k], scale, each...); });
        if constexpr (variant.ignored) v = select(t == chunk.ignored, zero, v);
        store(chunk.derivatives[k] + i, v, count, chunk.streamed[k]);
      }
    }
  };
  for (const Piece run : Runs<T>(0, chunk.count)) {
    for_each_register<T>(run.count, [&](int64_t i, auto count) { one_register(run.begin + i, count); });
    sum += partial;
    partial = zero;
  }
  ChunkResult result;
  if constexpr (variant.values == Values::kSummed) result.sum = sum_of_lanes(sum);
  if constexpr (Formula::kConditions > 0) {
    if (!all_set(~unmet)) result.unmet = unmet_conditions<variant, kOperands, Formula>(chunk);
  }
  return result;
}

// What a thread keeps from block to block: the tiles of transposed operands and factors.
template <class S>
struct PointwiseTiles {
  PointwiseTile<S> operands[3];
  PointwiseTile<Compute<S>> factors[2];

  void read(const PointwiseArguments& arguments, const PointwiseBlock& block) {
    for (int k = 0; k < 3; ++k) operands[k].read(arguments.operands[k], arguments.iteration, block);
    for (int k = 0; k < 2; ++k) factors[k].read(arguments.factors[k], arguments.iteration, block);
  }
};

// The elements of a block, as type S: the operands' own type where all have the same and there is no factor, else the
// compute type.
template <LoopVariant variant, int kOperands, class Formula, class S>
ChunkResult run_block(const Formula& formula, const PointwiseArguments& arguments, const PointwiseBlock& block,
                      const PointwiseTiles<S>& tiles) {
  using T = Compute<S>;
  alignas(64) S buffers[7][kChunk];  // operands, values, derivatives
  alignas(64) T factor[2][kChunk];
  bool streams[3];
  for (int k = 0; k < 3; ++k) {
    const int64_t bytes = arguments.iteration.count * static_cast<int64_t>(sizeof(S));
    streams[k] = is_streamed(arguments.derivatives[k].data, bytes, arguments.operands[0].data);
  }
  ChunkResult result;
  for (int64_t c = 0; c < block.chunks; ++c) {
    const Piece piece = block.chunk(c);
    const int64_t at = piece.begin;
    Chunk<S> chunk;
    chunk.count = piece.count;
    const auto reach = [&](const Operand& operand, const auto& tile, auto* buffer) {
      const auto* const read = tile.chunk(c);
      return read ? read : gather(operand, arguments.iteration, at, chunk.count, buffer);
    };
    for (int k = 0; k < kOperands; ++k) {
      chunk.operands[k] = reach(arguments.operands[k], tiles.operands[k], buffers[k]);
    }
    if constexpr (variant.factor) {
      // The product of the factors, 1 where there is none: loops that ignore elements always have a factor, so that
      // fewer loops are compiled.
      chunk.factor = nullptr;
      for (int k = 0; k < 2; ++k) {
        if (!arguments.factors[k].data) continue;
        const T* const one = reach(arguments.factors[k], tiles.factors[k], factor[k]);
        if (chunk.factor) {
          for (int64_t i = 0; i < chunk.count; ++i) factor[1][i] = chunk.factor[i] * one[i];
        }
        chunk.factor = chunk.factor ? factor[1] : one;
      }
      if (!chunk.factor) {
        if (c == 0) std::fill_n(factor[0], kChunk, T(1));
        chunk.factor = factor[0];
      }
    }
    chunk.ignored = static_cast<T>(arguments.ignored);
    chunk.scale = static_cast<T>(arguments.scale);
    // Results of another type than S, and those that are not asked for, go into a buffer.
    const auto place = [&](const Result& wanted, S* buffer) {
      return wanted.data && wanted.dtype == kScalarType<S> ? static_cast<S*>(wanted.data) + at : buffer;
    };
    chunk.values = place(arguments.values, buffers[3]);
    for (int k = 0; k < 3; ++k) {
      chunk.derivatives[k] = place(arguments.derivatives[k], buffers[4 + k]);
      chunk.streamed[k] = streams[k] && chunk.derivatives[k] != buffers[4 + k] && is_aligned(chunk.derivatives[k]);
    }
    const ChunkResult one = run_chunk<variant, kOperands>(formula, chunk);
    result.sum += one.sum;
    result.unmet |= one.unmet;
    const auto deliver = [&](const Result& wanted, const S* made) {
      if (!wanted.data || wanted.dtype == kScalarType<S>) return;
      with_storage(wanted.dtype, [&](auto storage) {
        convert(static_cast<decltype(storage)*>(wanted.data) + at, made, chunk.count);
      });
    };
    deliver(arguments.values, chunk.values);
    for (int k = 0; k < 3; ++k) deliver(arguments.derivatives[k], chunk.derivatives[k]);
  }
  return result;
}

template <LoopVariant variant, int kOperands, class S, class Formula>
double run_pointwise(const Formula& formula, const PointwiseArguments& arguments) {
  std::atomic<unsigned> unmet{0};  // an exception may not leave a parallel region
  const PointwiseBlocks blocks(arguments);
  const double sum = sum_over_blocks(blocks.count(), 1, kBlocksPerThread, [&] {
    return [&, tiles = PointwiseTiles<S>()](int64_t b, int64_t) mutable {
      if (blocks.tiled()) tiles.read(arguments, blocks[b]);
      const ChunkResult result = run_block<variant, kOperands, Formula, S>(formula, arguments, blocks[b], tiles);
      if (result.unmet) unmet |= result.unmet;
      return result.sum;
    };
  });
  if constexpr (Formula::kConditions > 0) {
    for (int k = 0; k < Formula::kConditions; ++k) {
      if (unmet >> k & 1) throw typename Formula::DomainError(Formula::refusal(k));
    }
  }
  return sum;
}

template <Values values, Derivatives derivatives, int kOperands, class Formula>
double choose_storage(const Formula& formula, const PointwiseArguments& arguments) {
  const ScalarType dtype = arguments.operands[0].dtype;
  bool same = true, any_float64 = false;
  for (const Operand& operand : arguments.operands) {
    if (!operand.data) continue;
    same &= operand.dtype == dtype;
    any_float64 |= operand.dtype == ScalarType::Double;
  }
  for (const Result& result : arguments.derivatives) same &= !result.data || result.dtype == dtype;
  const bool factor = arguments.factors[0].data || arguments.factors[1].data;
  constexpr LoopVariant plain{values, derivatives, false, false};
  constexpr LoopVariant weighted{values, derivatives, true, false};
  constexpr LoopVariant ignoring{values, derivatives, true, true};
  const auto compute = [&](auto type) {
    using T = decltype(type);
    if constexpr (Formula::kIgnores) {
      if (arguments.has_ignored) return run_pointwise<ignoring, kOperands, T>(formula, arguments);
    }
    if (factor) return run_pointwise<weighted, kOperands, T>(formula, arguments);
    return run_pointwise<plain, kOperands, T>(formula, arguments);
  };
  if (any_float64) return compute(double{});
  if constexpr (values != Values::kStored) {
    if (same && !factor && !arguments.has_ignored) {
      if (dtype == ScalarType::BFloat16) return run_pointwise<plain, kOperands, BFloat16>(formula, arguments);
      if (dtype == ScalarType::Half) return run_pointwise<plain, kOperands, Half>(formula, arguments);
    }
  }
  return compute(float{});
}

template <int kOperands, class Formula>
double choose_variant(const Formula& formula, const PointwiseArguments& arguments) {
  constexpr Derivatives none = Derivatives::kNone, first = Derivatives::kFirst;
  // For a formula of one derivative, all are the first, so nothing more is compiled.
  constexpr Derivatives all = Formula::kDerivatives == 1 ? first : Derivatives::kAll;
  const bool wants_first = arguments.derivatives[0].data;
  const bool wants_all = arguments.derivatives[1].data || arguments.derivatives[2].data;
  if (arguments.values.data) return choose_storage<Values::kStored, none, kOperands>(formula, arguments);
  if (arguments.wants_sum) {
    if (wants_all) return choose_storage<Values::kSummed, all, kOperands>(formula, arguments);
    if (wants_first) return choose_storage<Values::kSummed, first, kOperands>(formula, arguments);
    return choose_storage<Values::kSummed, none, kOperands>(formula, arguments);
  }
  if (wants_all) return choose_storage<Values::kUnused, all, kOperands>(formula, arguments);
  if (wants_first) return choose_storage<Values::kUnused, first, kOperands>(formula, arguments);
  return choose_storage<Values::kUnused, none, kOperands>(formula, arguments);
}

// A factor that is one number for all elements, such as the upstream gradient of a sum of losses, is part of the scale
// where no losses are stored, which it would multiply, too.
inline void fold_number(PointwiseArguments& arguments, Operand& factor) {
  if (!factor.data || arguments.values.data || arguments.wants_sum || arguments.iteration.count == 0) return;
  for (int d = 0; d < arguments.iteration.dims; ++d) {
    if (factor.strides[d] != 0 && arguments.iteration.sizes[d] != 1) return;
  }
  arguments.scale *= load_as<double>(factor.data, factor.dtype, 0);
  factor.data = nullptr;
}

template <class Formula>
double pointwise(PointwiseArguments arguments) {
  const Formula formula(arguments.parameters);
  for (Operand& factor : arguments.factors) fold_number(arguments, factor);
  if constexpr (Formula::kOptionalThird) {
    if (!arguments.operands[2].data) return choose_variant<2>(formula, arguments);
  }
  return choose_variant<Formula::kOperands>(formula, arguments);
}

#define FUSED_LOSSES_INSTANTIATE_POINTWISE(name, Formula) template double pointwise<Formula>(PointwiseArguments);

}  // namespace fused_losses
