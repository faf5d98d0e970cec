// The engine for losses of vectors on the CPU: one pass over the elements of a vector makes its numbers, and a second
// one its derivatives, while the elements are in cache.
//
// To be read from the end: triplet_margin() and cosine_embedding() choose the formula (formulas/vectors.h and
// distances.h), and run() the type that elements are read as. Vectors::run() gives short vectors to threads in blocks
// (run_blocks), and cuts long ones into stretches that threads share (run_pieces). Both call numbers(), which is the
// first pass, finish(), which makes a vector's loss and slopes of its numbers, and differentiate(), the second pass.
#include "vectors_engine.h"

#include <cmath>
#include <vector>

#include "blocks.h"

#include "../formulas/vectors.h"

namespace fused_losses {
namespace {

// Elements of each operand in a block of vectors, 32 KiB of float32.
constexpr int64_t kBlock = 8 * kChunk;

// Two blocks of two or three operands have about kStretch elements, which are worth waking a thread.
constexpr int64_t kBlocksPerThread = 2;

int64_t offset_of(const VectorOperand& operand, const Iteration& vectors, int64_t vector) {
  return fused_losses::offset_of(vector, vectors.dims, vectors.sizes, operand.starts.strides);
}

double read(const VectorOperand& operand, const Iteration& vectors, int64_t vector) {
  return load_as<double>(operand.starts.data, operand.starts.dtype, offset_of(operand, vectors, vector));
}

// S is the operands' own type where vectors lie ready in it, else the compute type, as which they are gathered.
template <class Formula, class S>
class Vectors {
  using T = Compute<S>;
  using V = Vector<T>;
  static constexpr int kOperands = Formula::kOperands;
  static constexpr int kNumbers = Formula::kNumbers;
  struct Numbers {
    double values[kNumbers];
  };

 public:
  Vectors(const Formula& formula, const VectorsArguments& arguments) : formula_(formula), arguments_(arguments) {
    const int64_t bytes = arguments.vectors.count * arguments.length * static_cast<int64_t>(sizeof(S));
    for (int k = 0; k < kOperands; ++k) {
      const void* const result = arguments.derivatives[k].starts.data;
      wants_derivatives_ |= result != nullptr;
      streams_[k] = is_streamed(result, bytes, arguments.operands[0].starts.data);
    }
  }

  double run() const { return arguments_.length > kStretch ? run_pieces() : run_blocks(); }

 private:
  double run_blocks() const {
    const int64_t in_block = std::max<int64_t>(1, kBlock / std::max<int64_t>(1, arguments_.length));
    return sum_over_blocks(arguments_.vectors.count, in_block, kBlocksPerThread, [&] {
      return [this](int64_t begin, int64_t end) {
        Sum sum;
        for (int64_t vector = begin; vector < end; ++vector) {
          Slope<double> slopes[Formula::kSlopes];
          sum += finish(vector, numbers(vector, 0, arguments_.length), slopes);
          if (wants_derivatives_) differentiate(vector, 0, arguments_.length, slopes);
        }
        return sum.value();
      };
    });
  }

  double run_pieces() const {
    const int64_t vectors = arguments_.vectors.count, length = arguments_.length;
    const int64_t pieces = stretches_of(length);
    const auto for_each_piece = [&](const auto& body) {
      parallel_for(vectors * pieces, 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          const int64_t begin = i % pieces * kStretch;
          body(i, i / pieces, begin, std::min(length, begin + kStretch));
        }
        finish_streaming();
      });
    };
    std::vector<Numbers> parts(vectors * pieces);
    for_each_piece(
        [&](int64_t i, int64_t vector, int64_t begin, int64_t end) { parts[i] = numbers(vector, begin, end); });
    struct VectorSlopes {
      Slope<double> values[Formula::kSlopes];
    };
    std::vector<VectorSlopes> slopes(vectors);
    Sum sum;
    for (int64_t vector = 0; vector < vectors; ++vector) {
      Numbers whole = parts[vector * pieces];
      for (int64_t piece = 1; piece < pieces; ++piece) merge(parts[vector * pieces + piece].values, whole.values);
      sum += finish(vector, whole, slopes[vector].values);
    }
    if (wants_derivatives_) {
      for_each_piece([&](int64_t, int64_t vector, int64_t begin, int64_t end) {
        differentiate(vector, begin, end, slopes[vector].values);
      });
    }
    return sum.value();
  }

  void merge(const double* other, double* numbers) const {
    if constexpr (Formula::kAdds) {
      for (int k = 0; k < kNumbers; ++k) numbers[k] += other[k];
    } else {
      formula_.merge(other, numbers);
    }
  }

  // The numbers of elements [begin, end) of a vector. Lanes take the elements of a run, then they are merged in double.
  Numbers numbers(int64_t vector, int64_t begin, int64_t end) const {
    Numbers total{};
    if constexpr (!Formula::kAdds) formula_.start(total.values);
    alignas(64) S buffers[kOperands][kChunk];
    for (const auto [at, n] : Chunks(begin, end)) {
      const S* x[kOperands];
      for (int k = 0; k < kOperands; ++k) x[k] = reach(arguments_.operands[k], vector, at, n, buffers[k]);
      for (const Piece run : Runs<T>(0, n)) add_run(x, run.begin, run.count, total.values);
    }
    return total;
  }

  void add_run(const S* const* x, int64_t begin, int64_t n, double* total) const {
    V lanes[kNumbers]{};
    if constexpr (!Formula::kAdds) formula_.start(lanes);
    for_each_register<T>(n, [&](int64_t i, auto count) {
      V elements[kOperands];
      for (int k = 0; k < kOperands; ++k) elements[k] = load(x[k] + begin + i, count, 0);
      if constexpr (std::is_same_v<decltype(count), int>) {
        V next[kNumbers];
        for (int k = 0; k < kNumbers; ++k) next[k] = lanes[k];
        formula_.add(elements, next);
        for (int k = 0; k < kNumbers; ++k) lanes[k] = select(first_lanes<V>(count), next[k], lanes[k]);
      } else {
        formula_.add(elements, lanes);
      }
    });
    if constexpr (Formula::kAdds) {
      for (int k = 0; k < kNumbers; ++k) total[k] += sum_of_lanes(lanes[k]);
    } else {
      for (int lane = 0; lane < kLanes<T>; ++lane) {
        double one[kNumbers];
        for (int k = 0; k < kNumbers; ++k) one[k] = lanes[k][lane];
        formula_.merge(one, total);
      }
    }
  }

  double finish(int64_t vector, const Numbers& numbers, Slope<double>* slopes) const {
    double target = 0, scale = arguments_.scale;
    if constexpr (Formula::kHasTarget) target = read(arguments_.operands[2], arguments_.vectors, vector);
    if (arguments_.upstream.starts.data) scale *= read(arguments_.upstream, arguments_.vectors, vector);
    const double value = formula_.finish(numbers.values, target, scale, wants_derivatives_ ? slopes : nullptr);
    const Operand& values = arguments_.values.starts;
    if (values.data) {
      store_as(const_cast<void*>(values.data), values.dtype, offset_of(arguments_.values, arguments_.vectors, vector),
               value);
    }
    return value;
  }

  void differentiate(int64_t vector, int64_t begin, int64_t end, const Slope<double>* slopes) const {
    alignas(64) S buffers[2 * kOperands][kChunk];
    for (const auto [at, n] : Chunks(begin, end)) {
      const S* x[kOperands];
      S* results[kOperands];
      bool streamed[kOperands];
      for (int k = 0; k < kOperands; ++k) {
        x[k] = reach(arguments_.operands[k], vector, at, n, buffers[k]);
        S* const place = in_place(arguments_.derivatives[k], vector, at);
        results[k] = place ? place : buffers[kOperands + k];
        streamed[k] = streams_[k] && place && is_aligned(place);
      }
      for_each_register<T>(n, [&](int64_t i, auto count) {
        V elements[kOperands], made[kOperands];
        for (int k = 0; k < kOperands; ++k) elements[k] = load(x[k] + i, count, 0);
        formula_.derivatives(slopes, elements, made);
        for (int k = 0; k < kOperands; ++k) store(results[k] + i, made[k], count, streamed[k]);
      });
      for (int k = 0; k < kOperands; ++k) {
        if (results[k] == buffers[kOperands + k]) deliver(arguments_.derivatives[k], vector, at, n, results[k]);
      }
    }
  }

  // Elements [at, at + n) of a vector: a pointer to where they lie, if they lie ready, or to `buffer`, into which they
  // are then gathered.
  const S* reach(const VectorOperand& operand, int64_t vector, int64_t at, int64_t n, S* buffer) const {
    const S* const place = in_place(operand, vector, at);
    if (place) return place;
    with_storage(operand.starts.dtype, [&](auto storage) {
      const auto* const data = static_cast<const decltype(storage)*>(operand.starts.data);
      gather_run(buffer, data + offset_of(operand, arguments_.vectors, vector) + at * operand.stride, operand.stride,
                 n);
    });
    return buffer;
  }

  S* in_place(const VectorOperand& operand, int64_t vector, int64_t at) const {
    if (!operand.starts.data || operand.starts.dtype != kScalarType<S> || operand.stride != 1) return nullptr;
    return static_cast<S*>(const_cast<void*>(operand.starts.data)) + offset_of(operand, arguments_.vectors, vector) +
           at;
  }

  void deliver(const VectorOperand& result, int64_t vector, int64_t at, int64_t n, const S* made) const {
    if (!result.starts.data) return;
    with_storage(result.starts.dtype, [&](auto storage) {
      auto* const data = static_cast<decltype(storage)*>(const_cast<void*>(result.starts.data));
      scatter_run(data + offset_of(result, arguments_.vectors, vector) + at * result.stride, result.stride, made, n);
    });
  }

  const Formula& formula_;
  const VectorsArguments& arguments_;
  bool wants_derivatives_ = false;
  bool streams_[kOperands];
};

template <class Formula>
double run(const Formula& formula, const VectorsArguments& arguments) {
  const ScalarType dtype = arguments.operands[0].starts.dtype;
  bool ready = true, any_float64 = false;
  const auto look = [&](const VectorOperand& operand) {
    if (!operand.starts.data) return;
    ready &= operand.starts.dtype == dtype && operand.stride == 1;
    any_float64 |= operand.starts.dtype == ScalarType::Double;
  };
  for (int k = 0; k < Formula::kOperands; ++k) {
    look(arguments.operands[k]);
    look(arguments.derivatives[k]);
  }
  if (any_float64) return Vectors<Formula, double>(formula, arguments).run();
  if (ready && dtype == ScalarType::BFloat16) return Vectors<Formula, BFloat16>(formula, arguments).run();
  if (ready && dtype == ScalarType::Half) return Vectors<Formula, Half>(formula, arguments).run();
  return Vectors<Formula, float>(formula, arguments).run();
}

}  // namespace

double triplet_margin(const VectorsArguments& arguments) {
  const double* const parameters = arguments.parameters;
  const double margin = parameters[0], p = parameters[1], eps = parameters[2];
  const bool swap = parameters[3] != 0;
  const bool cosine = arguments.parameter_count > 4 && parameters[4] != 0;
  const auto with = [&](const auto& distance) { return run(TripletMargin{distance, margin, swap}, arguments); };
  if (cosine) return with(CosineDistance{});
  if (p == 1 || (arguments.length == 1 && std::isfinite(p))) return with(ManhattanDistance{{}, eps, p});
  if (p == 2) return with(EuclideanDistance{{}, eps});
  if (std::isinf(p)) return with(ExtremeDistance{eps, p < 0});
  return with(PowerDistance{{}, eps, p});
}

double cosine_embedding(const VectorsArguments& arguments) {
  return run(CosineEmbedding{arguments.parameters[0]}, arguments);
}

}  // namespace fused_losses
