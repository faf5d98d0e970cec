// Operands of any dtype and layout, eight neighbouring elements at a time.
//
// A run is eight elements that an iteration visits one after the other. Where they lie side by side, they take one or
// two accesses of 128 bits, if memory is aligned for that, else accesses of single words. Operands that are broadcast
// or strided along the rows of the iteration are found by row and column, for a whole run at once and without a
// division. To be read from the end: load_run() is what kernels call, with the place of the run.
#pragma once

#include "storage.cuh"

namespace fused_losses {

inline constexpr int kRun = 8;

// Divides numbers below 2^31 by one that is known before the launch, by a multiplication and a shift (Granlund and
// Montgomery, Division by invariant integers using multiplication, 1994).
struct FastDivisor {
  uint32_t multiplier = 0, shift = 0;

  FastDivisor() = default;
  explicit FastDivisor(int64_t divisor) {
    while ((int64_t{1} << shift) < divisor) ++shift;
    multiplier = static_cast<uint32_t>((((uint64_t{1} << shift) - divisor) << 32) / divisor + 1);
  }
  __device__ uint32_t quotient(uint32_t n) const { return (high_product(n, multiplier) + n) >> shift; }
};

// An iteration, and what finds the place of an element in it.
struct RunIteration {
  Iteration of;
  FastDivisor divisors[kLoopDims];  // by the sizes, if the iteration is small
  bool is_small;                    // fewer than 2^31 elements, no further apart than that in any operand
  bool is_flat = true;              // all operands are contiguous
  bool is_plane;                    // small, of two dimensions
  int64_t row;                      // the size of the innermost dimension

  explicit RunIteration(const Iteration& iteration)
      : of(iteration),
        is_small(iteration.count <= INT32_MAX),
        is_plane(is_small && of.dims == 2),
        row(of.dims ? of.sizes[of.dims - 1] : 1) {
    for (int d = 0; is_small && d < of.dims; ++d) divisors[d] = FastDivisor(std::max<int64_t>(of.sizes[d], 1));
  }
  __device__ int64_t quotient(int64_t i, int d) const {
    return is_small ? divisors[d].quotient(static_cast<uint32_t>(i)) : i / of.sizes[d];
  }
};

// Whether all runs of an operand lie side by side and aligned.
inline bool has_aligned_runs(const Operand& operand, const Iteration& iteration) {
  if (!is_aligned(operand.data)) return false;
  if (operand.contiguous) return true;
  const int last = iteration.dims - 1;
  bool aligned = operand.strides[last] == 1 && iteration.sizes[last] % kRun == 0;
  for (int d = 0; d < last; ++d) aligned = aligned && operand.strides[d] % kRun == 0;
  return aligned;
}

// An operand of kernels that take runs.
struct RunOperand : Operand {
  bool aligned = false;  // all runs lie side by side and aligned
  unsigned width = 0;    // bytes of an element
  int period = 0;        // element i is data[i % period]; 0 where there is no such number below 2^31
  FastDivisor by_period;

  // Says to the iteration what finding this operand's elements takes.
  RunOperand(const Operand& operand, RunIteration& iteration) : Operand(operand) {
    if (!data) return;
    width = with_storage(dtype, [](auto storage) { return sizeof(storage); });
    contiguous = is_contiguous(strides, iteration.of);
    aligned = has_aligned_runs(*this, iteration.of);
    const bool repeats = iteration.of.dims == 2 && strides[0] == 0 && strides[1] == 1;
    const int64_t length = contiguous ? iteration.of.count : repeats ? iteration.row : 0;
    if (length > 0 && iteration.of.count <= INT32_MAX) {
      period = static_cast<int>(length);
      by_period = FastDivisor(length);
    }
    iteration.is_flat = iteration.is_flat && contiguous;
    for (int d = 0; iteration.is_small && d < iteration.of.dims; ++d) {
      int64_t reach = 0;
      const bool overflows = __builtin_mul_overflow(iteration.of.sizes[d], strides[d], &reach);
      iteration.is_small = !overflows && std::abs(reach) <= INT32_MAX / kLoopDims;
    }
    iteration.is_plane = iteration.is_plane && iteration.is_small;
  }

  // Where element i of the iteration is, if there is a period.
  __device__ int in_period(int64_t i) const {
    return static_cast<int>(i) - static_cast<int>(by_period.quotient(static_cast<uint32_t>(i))) * period;
  }
};

// How far element i of the iteration lies from the beginning of an operand. All that takes elements one by one, or has
// more than two dimensions, shares this function's code.
__device__ FUSED_LOSSES_NOINLINE inline int64_t offset_of(const RunOperand& operand, const RunIteration& iteration,
                                                          int64_t i) {
  if (operand.contiguous) return i;
  int64_t offset = 0;
#pragma unroll 1
  for (int d = iteration.of.dims - 1; d > 0; --d) {
    const int64_t quotient = iteration.quotient(i, d);
    offset += (i - quotient * iteration.of.sizes[d]) * operand.strides[d];
    i = quotient;
  }
  return offset + i * operand.strides[0];
}

// Where a run lies in `count` operands. Elements before the `left`-th one are in the row in which it begins, others in
// the next one, unless rows are shorter than a run.
template <int count>
struct RunPlace {
  int64_t begin;  // the number of its first element
  int64_t left = kRun;
  int64_t offsets[count];  // of the first element

  // source(k) is operand k.
  template <class Source>
  __device__ RunPlace(int64_t begin_, const Source& source, const RunIteration& iteration) : begin(begin_) {
    unrolled<count>([&](int k) { offsets[k] = begin; });
    if (iteration.is_flat) return;
    if (iteration.is_plane) {
      const int size = static_cast<int>(iteration.row);
      const int row = static_cast<int>(iteration.divisors[1].quotient(static_cast<uint32_t>(begin)));
      const int column = static_cast<int>(begin) - row * size;
      left = size - column;
      unrolled<count>([&](int k) {
        offsets[k] = row * static_cast<int>(source(k).strides[0]) + column * static_cast<int>(source(k).strides[1]);
      });
    } else {
      left = iteration.row - (begin - iteration.quotient(begin, iteration.of.dims - 1) * iteration.row);
      unrolled<count>([&](int k) { offsets[k] = offset_of(source(k), iteration, begin); });
    }
  }
};

// Eight elements as they are stored: of 32 bits, or of 16 in the first half of the words.
struct Run {
  unsigned words[kRun];
};

// Four words of elements that do not lie side by side: element j is the one at offset_of(j). Each enters at the upper
// end, and those before it move down.
template <class Bits, class OffsetOf>
__device__ inline ulonglong2 gathered(const void* data, const OffsetOf& offset_of) {
  constexpr int kBits = 8 * sizeof(Bits), kCount = 128 / kBits, kWord = 64;
  uint64_t lower = 0, upper = 0;
#pragma unroll 1
  for (int j = 0; j < kCount; ++j) {
    lower = lower >> kBits | upper << (kWord - kBits);
    upper = upper >> kBits | static_cast<uint64_t>(static_cast<const Bits*>(data)[offset_of(j)]) << (kWord - kBits);
  }
  return {lower, upper};
}

// Rare enough to be functions of their own, whose code all kernels share.
__device__ FUSED_LOSSES_NOINLINE inline ulonglong2 gathered_across_rows(const RunOperand& operand,
                                                                        const RunIteration& iteration, int64_t begin) {
  const auto place = [&](int j) { return offset_of(operand, iteration, begin + j); };
  return operand.width == 2 ? gathered<uint16_t>(operand.data, place) : gathered<uint32_t>(operand.data, place);
}

__device__ inline Run across_rows(const RunOperand& operand, const RunIteration& iteration, int64_t begin) {
  Run run;
  const auto take = [&](int p, const ulonglong2& some) {
    const uint64_t halves[] = {some.x, some.y};
    unrolled<4>([&](int w) { run.words[4 * p + w] = static_cast<unsigned>(halves[w / 2] >> (w % 2 * 32)); });
  };
  take(0, gathered_across_rows(operand, iteration, begin));
  if (operand.width != 2) take(1, gathered_across_rows(operand, iteration, begin + kRun / 2));
  return run;
}

// Elements of a row that are `stride` apart.
__device__ inline Run strided(const RunOperand& operand, int64_t first, int64_t stride) {
  Run run;
  if (operand.width == 2) {
    const auto* from = static_cast<const uint16_t*>(operand.data) + first;
    unrolled<kRun / 2>([&](int w) {
      run.words[w] = from[0] | static_cast<unsigned>(from[stride]) << 16;
      from += 2 * stride;
    });
  } else {
    const auto* const from = static_cast<const unsigned*>(operand.data) + first;
    unrolled<kRun>([&](int j) { run.words[j] = from[j * stride]; });
  }
  return run;
}

// Elements that lie side by side, but not aligned. Those of 16 bits that begin within a word are the whole words
// between the first and the last element, shifted by one.
__device__ inline Run side_by_side(const RunOperand& operand, int64_t offset) {
  Run run;
  if (operand.width != 2) {
    const auto* const from = static_cast<const unsigned*>(operand.data) + offset;
    unrolled<kRun>([&](int j) { run.words[j] = from[j]; });
    return run;
  }
  const auto* const from = static_cast<const uint16_t*>(operand.data) + offset;
  if (reinterpret_cast<uintptr_t>(from) % sizeof(unsigned) == 0) {
    unrolled<kRun / 2>([&](int w) { run.words[w] = reinterpret_cast<const unsigned*>(from)[w]; });
  } else {
    unsigned before = static_cast<unsigned>(from[0]) << 16;
    unrolled<kRun / 2>([&](int w) {
      const unsigned word = w == kRun / 2 - 1 ? from[kRun - 1] : *reinterpret_cast<const unsigned*>(from + 1 + 2 * w);
      run.words[w] = before >> 16 | word << 16;
      before = word;
    });
  }
  return run;
}

// The run of operand k at a place.
template <int count>
__device__ inline Run load_run(const RunOperand& operand, const RunIteration& iteration, const RunPlace<count>& place,
                               int k) {
  if (operand.aligned) {
    Run run;
    const auto* const from = static_cast<const char*>(operand.data) + place.offsets[k] * operand.width;
    load_words(run.words, from);
    if (operand.width != 2) load_words(run.words + 4, from + kPackBytes);
    return run;
  }
  const int64_t first = place.offsets[k], stride = operand.contiguous ? 1 : operand.strides[iteration.of.dims - 1];
  if (place.left < kRun && !operand.contiguous) return across_rows(operand, iteration, place.begin);
  return stride == 1 ? side_by_side(operand, first) : strided(operand, first, stride);
}

// A run's elements, in the type of arithmetic.
template <class S, class T>
__device__ inline void unpack_as(const Run& run, T* elements) {
  if constexpr (sizeof(S) == 2) {
    unrolled<kRun / 2>([&](int w) {
      const TwoFloats both = widened<S>(run.words[w]);
      elements[2 * w] = static_cast<T>(both.first);
      elements[2 * w + 1] = static_cast<T>(both.second);
    });
  } else {
    unrolled<kRun>([&](int j) { elements[j] = static_cast<T>(float_of(run.words[j])); });
  }
}
template <class T>
__device__ inline void unpack(const Run& run, ScalarType dtype, T* elements) {
  switch (dtype) {
    case ScalarType::BFloat16: return unpack_as<BFloat16>(run, elements);
    case ScalarType::Half: return unpack_as<Half>(run, elements);
    default: return unpack_as<float>(run, elements);
  }
}

// Writes a run of a result, which is aligned.
template <class S, class T>
__device__ inline void store_run_as(void* data, int64_t begin, const T* elements) {
  constexpr int kWords = kRun * sizeof(S) / sizeof(unsigned);
  unsigned words[kWords];
  unrolled<kWords>([&](int w) {
    if constexpr (sizeof(S) == 2) {
      words[w] = narrowed<S>(static_cast<float>(elements[2 * w]), static_cast<float>(elements[2 * w + 1]));
    } else {
      words[w] = word_of(static_cast<float>(elements[w]));
    }
  });
  unrolled<kWords / 4>([&](int p) { store_words(static_cast<S*>(data) + begin + p * kPack<S>, words + 4 * p); });
}
template <class T>
__device__ inline void store_run(const Result& result, int64_t begin, const T* elements) {
  switch (result.dtype) {
    case ScalarType::BFloat16: return store_run_as<BFloat16>(result.data, begin, elements);
    case ScalarType::Half: return store_run_as<Half>(result.data, begin, elements);
    default: return store_run_as<float>(result.data, begin, elements);
  }
}

}  // namespace fused_losses
