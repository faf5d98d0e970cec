// Softmax over rows whose classes lie side by side.
//
// A row is read from memory once. The first pass (accumulate) keeps a reference, a number near the maximum, adds up the
// numerators exp(x - reference), and keeps these in a buffer that stays in cache. The second pass (emit) turns them
// into the gradient by one multiplication each: one exponential for each element in all. The reference is the largest
// logit of the row's first chunk, unless a later chunk makes it rise. The numerators of chunks before that are computed
// again in the second pass, so that a backward that has the logits and the last reference makes the same ones.
//
// Reading order: run() gives rows to threads; row() does one row; accumulate() and emit() are its passes over a
// stretch, whose loops are in softmax_chunks.h and softmax_term_loops.h; at_label() makes the one element that needs
// more care.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "blocks.h"
#include "softmax_chunks.h"
#include "softmax_targets.h"
#include "softmax_term_loops.h"

namespace fused_losses {

// Bytes of numerators that are kept: half of the second-level cache of today's server processors, 2 MiB. The row's
// logits take the rest.
inline constexpr int64_t kCachedRow = int64_t{1} << 20;

template <class S>
class SoftmaxRows {
  using T = Compute<S>;

 public:
  explicit SoftmaxRows(const SoftmaxArguments& arguments)
      : arguments_(arguments),
        targets_(arguments),
        soft_(!targets_.soft.absent()),
        terms_(arguments.terms.any() || arguments.lse_gradient.data),
        map_(arguments.terms),
        statistics_known_(arguments.backward && arguments.reference),
        classes_(arguments.classes),
        stretches_(stretches_of(classes_)),
        // Keeping numerators is of no use where the gradient of the probabilities needs the logits again, and costs
        // more than a second exponential where a row of them does not stay in the second-level cache.
        keep_numerators_(arguments.input_gradient.data && !statistics_known_ && !terms_ &&
                         !arguments.probabilities_gradient.data &&
                         classes_ * static_cast<int64_t>(sizeof(T)) <= kCachedRow),
        streams_(is_streamed(arguments.input_gradient.data,
                             arguments.outer * arguments.inner * classes_ * static_cast<int64_t>(sizeof(S)),
                             arguments.input.data)) {}

  double run() {
    const int64_t rows = arguments_.outer * arguments_.inner;
    if (threads_share_rows(rows, stretches_)) {
      Scratch scratch(*this);
      Sum sum;
      for (int64_t r = 0; r < rows; ++r) {
        sum += row(r, scratch, [&](const auto& body) { parallel_for(stretches_, 1, body); });
      }
      return sum.value();
    }
    return sum_over_blocks(rows, items_per_block(classes_), 1, [&] {
      return [this, scratch = Scratch(*this)](int64_t begin, int64_t end) mutable {
        Sum sum;
        for (int64_t r = begin; r < end; ++r) {
          sum += row(r, scratch, [&](const auto& body) { body(int64_t{0}, stretches_); });
        }
        return sum.value();
      };
    });
  }

 private:
  // Memory for the row in work, which a thread keeps from row to row.
  struct Scratch {
    std::vector<SoftmaxState<double>> states;  // per stretch
    std::vector<T> chunk_references;           // what each chunk's numerators are relative to
    std::unique_ptr<T[]> numerators;           // per class; null, if they are not kept
    std::vector<Largest> largest;              // per stretch

    explicit Scratch(const SoftmaxRows& rows)
        : states(rows.stretches_), chunk_references((rows.classes_ + kChunk - 1) / kChunk) {
      if (rows.keep_numerators_) numerators.reset(new T[rows.classes_]);
    }
  };

  // Writes the results of row r and returns its loss. share(body) calls body(first, last) for all stretches of the row,
  // on this thread or on all.
  template <class Share>
  double row(int64_t r, Scratch& scratch, const Share& share) {
    const int64_t outer = r / arguments_.inner, inner = r % arguments_.inner;
    const S* const x = at<S>(arguments_, arguments_.input, outer, inner);
    S* const gradient =
        const_cast<S*>(static_cast<const S*>(row_start(arguments_, arguments_.input_gradient, outer, inner)));
    const void* const probabilities = row_start(arguments_, arguments_.probabilities, outer, inner);
    const bool has_hot = arguments_.labels.data;
    const int64_t label = has_hot ? label_of(arguments_, outer, inner) : 0;
    if (has_hot && label == arguments_.ignore_index) {
      if (gradient) share([&](int64_t first, int64_t last) { clear(gradient, first, last); });
      if (arguments_.losses.data) store_loss(arguments_, r, 0);
      set_statistics(r, 0, 1, 0);
      if (arguments_.argmax) arguments_.argmax[r] = -1;
      return 0;
    }
    const double hot = has_hot ? targets_.soft.kept * targets_.weight(label) : 0;
    double x_y = has_hot ? static_cast<double>(static_cast<T>(x[label])) : 0;  // read before it is overwritten
    if (terms_) x_y = map_.value(x_y);
    T* const numerators = scratch.numerators.get();

    SoftmaxState<double> state;
    if (statistics_known_) {
      state.reference = static_cast<const T*>(arguments_.reference)[r];
      state.sum = static_cast<const T*>(arguments_.sum)[r];
      if (probabilities) state.mass = mass(probabilities);
      if (arguments_.mean_excess) state.excess = static_cast<const T*>(arguments_.mean_excess)[r] * state.sum;
    } else {
      SoftmaxState<double> start;
      if (!terms_) start.raise(max_of(x, std::min(classes_, kChunk)));
      share([&](int64_t first, int64_t last) {
        for (int64_t s = first; s < last; ++s)
          scratch.states[s] = accumulate(start, x, probabilities, numerators, scratch.chunk_references, s);
      });
      for (const SoftmaxState<double>& part : scratch.states) state.merge(part);
      set_statistics(r, state.reference, state.sum, state.excess / state.sum);
    }
    if (!probabilities) state.mass = targets_.shared_mass;
    if (arguments_.argmax) arguments_.argmax[r] = largest(x, scratch, share).at;

    const double scale = arguments_.scale * upstream_of(arguments_, outer, inner);
    SoftmaxGradient<double> pieces(state.sum, state.mass, hot, scale);
    double excess_factor = 0;
    if (terms_) {
      const SoftmaxTerms& terms = arguments_.terms;
      const double lse_upstream = number_at(arguments_, arguments_.lse_gradient, outer, inner, 0);
      const SoftmaxTermsGradient<double> more(state, terms.z_loss, terms.entropy, scale, lse_upstream);
      pieces.numerator_factor += more.numerator_factor;
      excess_factor = more.excess_factor;
    }
    if (gradient || arguments_.probabilities_gradient.data) {
      share([&](int64_t first, int64_t last) {
        for (int64_t s = first; s < last; ++s) {
          emit(x, probabilities, numerators, scratch.chunk_references, gradient,
               row_start(arguments_, arguments_.probabilities_gradient, outer, inner), state, pieces, excess_factor,
               scale, s);
        }
      });
    }
    if (gradient && has_hot)
      gradient[label] = static_cast<S>(static_cast<T>(at_label(label, x_y, state, pieces, excess_factor)));
    if (arguments_.backward) return 0;
    double value = cross_entropy_value(state, has_hot, hot, x_y);
    if (terms_) value += terms_value(state, arguments_.terms.z_loss, arguments_.terms.entropy);
    if (arguments_.losses.data) store_loss(arguments_, r, value);
    return value;
  }

  // The first pass over a stretch: its state, which begins as `state`. Numerators are kept unless null.
  SoftmaxState<double> accumulate(SoftmaxState<double> state, const S* x, const void* probabilities, T* numerators,
                                  std::vector<T>& chunk_references, int64_t stretch) const {
    T* const none = nullptr;
    for (const Piece chunk : chunks_of_stretch(stretch, classes_)) {
      const int64_t c = chunk.begin, n = chunk.count;
      with_targets(probabilities, chunk, [&](const auto& q) {
        if (terms_) {
          alignas(64) T logits[kChunk];
          map_logits(map_, x + c, n, logits);
          accumulate_chunk<false>(state, logits, n, q, none);
          if (arguments_.terms.entropy != 0)
            state.excess += excess_of(logits, n, finite_reference(static_cast<T>(state.reference)));
        } else if (numerators) {
          accumulate_chunk<true>(state, x + c, n, q, numerators + c);
        } else {
          accumulate_chunk<false>(state, x + c, n, q, none);
        }
      });
      chunk_references[c / kChunk] = static_cast<T>(state.reference);
    }
    return state;
  }

  // Calls body(q) with the soft targets of a chunk of a row, whose probabilities begin at `probabilities`.
  template <class Body>
  void with_targets(const void* probabilities, Piece chunk, const Body& body) const {
    if (!soft_) return body(NoTargets<T>());
    if (!targets_.shared.empty()) return body(ListedTargets<T>{targets_.shared.data() + chunk.begin});
    if (!probabilities) return body(EvenTargets<T>{static_cast<T>(targets_.soft.constant)});
    alignas(64) T q[kChunk];
    targets_.soft.fill(probabilities, chunk.begin, chunk.count, q);
    body(ListedTargets<T>{q});
  }

  // The second pass over a stretch: writes the gradients, given the state of the whole row.
  void emit(const S* x, const void* probabilities, const T* numerators, const std::vector<T>& chunk_references,
            S* gradient, const void* probabilities_gradient, const SoftmaxState<double>& state,
            const SoftmaxGradient<double>& pieces, double excess_factor, double scale, int64_t stretch) const {
    const T reference = static_cast<T>(state.reference);
    const T soft_factor = static_cast<T>(pieces.soft_factor);
    alignas(64) T logits[kChunk];
    for (const Piece chunk : chunks_of_stretch(stretch, classes_)) {
      const int64_t c = chunk.begin, n = chunk.count;
      if (terms_) map_logits(map_, x + c, n, logits);
      if (probabilities_gradient) {
        const T factor = static_cast<T>(targets_.soft.kept * scale);
        const T* const weight = targets_.soft.weight ? targets_.soft.weight + c : nullptr;
        with_storage(arguments_.probabilities_gradient.dtype, [&](auto storage) {
          using P = decltype(storage);
          P* const to = static_cast<P*>(const_cast<void*>(probabilities_gradient)) + c;
          const T log_sum = static_cast<T>(std::log(state.sum));
          terms_ ? emit_probabilities_gradient(logits, reference, log_sum, factor, weight, to, n)
                 : emit_probabilities_gradient(x + c, reference, log_sum, factor, weight, to, n);
        });
      }
      if (!gradient) continue;
      const bool streamed = streams_ && is_aligned(gradient + c);
      with_targets(probabilities, chunk, [&](const auto& q) {
        const T factor = static_cast<T>(pieces.numerator_factor);
        if (terms_) {
          emit_with_terms(map_, logits, reference, factor, static_cast<T>(excess_factor), q, soft_factor, gradient + c,
                          n, streamed);
        } else if (numerators && chunk_references[c / kChunk] == reference) {
          emit_from_numerators(numerators + c, factor, q, soft_factor, gradient + c, n, streamed);
        } else {
          emit_from_logits(x + c, reference, factor, q, soft_factor, gradient + c, n, streamed);
        }
      });
    }
    if (streams_) finish_streaming();
  }

  // The gradient at the label, where its terms nearly cancel: in double, and rounded once.
  double at_label(int64_t label, double x_y, const SoftmaxState<double>& state, const SoftmaxGradient<double>& pieces,
                  double excess_factor) const {
    const double numerator = std::exp(x_y - state.reference);
    double q = targets_.soft.constant;
    if (targets_.soft.weight) q *= static_cast<double>(targets_.soft.weight[label]);
    double slope = numerator * pieces.numerator_factor + pieces.hot_term + (soft_ ? q * pieces.soft_factor : 0);
    if (!terms_) return slope;
    if (numerator != 0) slope += numerator * (x_y - state.reference) * excess_factor;
    return slope * map_.slope(x_y);
  }

  // The sum of the soft targets of a row.
  double mass(const void* probabilities) const {
    double total = 0;
    alignas(64) T q[kChunk];
    for (const Piece chunk : Chunks(0, classes_)) {
      const int64_t c = chunk.begin, n = chunk.count;
      targets_.soft.fill(probabilities, c, n, q);
      Vector<T> sum{};
      for_each_register<T>(n, [&](int64_t i, auto count) { sum += load(q + i, count, 0); });
      total += sum_of_lanes(sum);
    }
    return total;
  }

  // Writes a gradient of 0 to stretches [first, last).
  void clear(S* gradient, int64_t first, int64_t last) const {
    const int64_t begin = first * kStretch, end = std::min(classes_, last * kStretch);
    std::fill(gradient + begin, gradient + end, S(0));
  }

  // The largest logit of a row: each stretch finds its own, and the first of the largest is taken.
  template <class Share>
  Largest largest(const S* x, Scratch& scratch, const Share& share) const {
    scratch.largest.assign(stretches_, Largest());
    share([&](int64_t first, int64_t last) {
      for (int64_t s = first; s < last; ++s) {
        for (const Piece chunk : chunks_of_stretch(s, classes_)) {
          const int64_t c = chunk.begin, n = chunk.count;
          alignas(64) T logits[kChunk];
          map_logits(map_, x + c, n, logits);
          for (int64_t i = 0; i < n; ++i) scratch.largest[s].look_at(logits[i], c + i);
        }
      }
    });
    Largest all;
    for (const Largest& part : scratch.largest) {
      if (part.at >= 0) all.look_at(part.value, part.at);
    }
    return all;
  }

  void set_statistics(int64_t r, double reference, double sum, double mean_excess) {
    if (!arguments_.reference || arguments_.backward) return;
    static_cast<T*>(arguments_.reference)[r] = static_cast<T>(reference);
    static_cast<T*>(arguments_.sum)[r] = static_cast<T>(sum);
    if (arguments_.mean_excess) static_cast<T*>(arguments_.mean_excess)[r] = static_cast<T>(mean_excess);
  }

  const SoftmaxArguments& arguments_;
  const Targets<T> targets_;
  const bool soft_;
  const bool terms_;
  const LogitMap<T> map_;
  const bool statistics_known_;
  const int64_t classes_;
  const int64_t stretches_;
  const bool keep_numerators_;
  const bool streams_;
};

}  // namespace fused_losses
