// Softmax where the classes of a row do not lie side by side, as in images (N, C, H, W), or are few: many positions at
// once, one to a lane. A tile of positions and classes is copied into cache, and there converted and transposed as
// needed; memory is read and written once.
//
// Reading order: run() gives tiles to threads; tile() brings a tile into cache and its gradient back; passes() does the
// rest, in this order: read_positions(), what is known of each position besides its logits; statistics(), maximum
// first, then sums of numerators, which are kept where the gradient will be; emit(), the gradient; at_labels(), the one
// element of each position that needs more care; values(), the losses.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "blocks.h"
#include "softmax_targets.h"
#include "softmax_term_loops.h"
#include "softmax_tile_memory.h"

namespace fused_losses {

template <class S>
class SoftmaxTiles {
  using T = Compute<S>;
  using V = Vector<T>;
  using Lanes = T[kPositions];

  // Classes that are added up in T before their sum goes into a double: few enough that the rounding errors of float32
  // stay small, also of equal soft targets, which are all rounded to the same side; and enough that additions in
  // double, of which a register holds half as many, do not show.
  static constexpr int64_t kClassBlock = 32;

 public:
  explicit SoftmaxTiles(const SoftmaxArguments& arguments)
      : arguments_(arguments),
        targets_(arguments),
        soft_(!targets_.soft.absent()),
        terms_(arguments.terms.any() || arguments.lse_gradient.data),
        map_(arguments.terms),
        streams_(is_streamed(arguments.input_gradient.data,
                             arguments.outer * arguments.inner * arguments.classes * static_cast<int64_t>(sizeof(S)),
                             arguments.input.data)) {}

  double run() {
    // A tile may cross from one `outer` to the next, so that short inner dimensions fill it, too.
    const int64_t rows = arguments_.outer * arguments_.inner;
    const int64_t tiles = (rows + kPositions - 1) / kPositions;
    return sum_over_blocks(tiles, items_per_block(kPositions * arguments_.classes), 1, [&] {
      return [&, scratch = Scratch()](int64_t begin, int64_t end) mutable {
        double sum = 0;
        for (int64_t t = begin; t < end; ++t) {
          const int64_t first = t * kPositions;
          sum += tile(first, static_cast<int>(std::min<int64_t>(kPositions, rows - first)), scratch);
        }
        if (streams_) finish_streaming();
        return sum;
      };
    });
  }

 private:
  // Tiles, (classes, kPositions); empty until one is needed.
  struct Scratch {
    std::vector<T> input, probabilities, input_gradient, probabilities_gradient;
  };

  double tile(int64_t first, int count, Scratch& scratch) {
    if (first + 2 * kPositions <= arguments_.outer * arguments_.inner) prefetch_tile<S>(arguments_, first + kPositions);
    T* const x = gather_tile(arguments_, arguments_.input, first, count, scratch.input);
    const int64_t elements = arguments_.classes * kPositions;
    if (terms_) map_logits(map_, x, elements, x);
    const ClassTensor& gradient = arguments_.input_gradient;
    if (!gradient.data) return passes(x, nullptr, first, count, scratch);
    scratch.input_gradient.resize(elements);
    const double value = passes(x, scratch.input_gradient.data(), first, count, scratch);
    scatter_tile(arguments_, gradient, first, count, scratch.input_gradient.data(), streams_);
    return value;
  }

  // What is known of each position before its logits are read: the target `hot` at the label, what gradients are
  // multiplied by, the logit and the soft target of the label, whether the position counts (1 or 0), and the upstream
  // gradient of its log-sum-exp. Positions beyond the tile's count do not count.
  struct Positions {
    Lanes hot{}, scale{}, x_y{}, soft_at_label{}, valid{}, lse_upstream{};
    int64_t label[kPositions];
  };

  // What is known of each position once its logits are read: m, s, Q, X and U / s of formulas/cross_entropy.h.
  struct Statistics {
    Lanes reference{}, sum{}, mass{}, cross{}, mean_excess{};
  };

  // What terms add to each position's gradient: see SoftmaxTermsGradient.
  struct Terms {
    Lanes numerator_factor{}, excess_factor{};
  };

  Positions read_positions(const T* x, int64_t first, int count) const {
    Positions positions;
    for_each_position_run(arguments_, first, first + count, [&](const PositionRun& run) {
      const int begin = static_cast<int>(run.position - first), end = begin + static_cast<int>(run.count());
      const auto inner = [&](int p) { return run.begin + (p - begin); };
      std::fill(positions.scale + begin, positions.scale + end, static_cast<T>(arguments_.scale));
      if (arguments_.upstream.data) {
        for (int p = begin; p < end; ++p) {
          positions.scale[p] *= static_cast<T>(upstream_of(arguments_, run.outer, inner(p)));
        }
      }
      for (int p = begin; terms_ && p < end; ++p) {
        positions.lse_upstream[p] =
            static_cast<T>(number_at(arguments_, arguments_.lse_gradient, run.outer, inner(p), 0));
      }
      if (!arguments_.labels.data) {
        std::fill(positions.valid + begin, positions.valid + end, T(1));
        return;
      }
      read_labels(arguments_, run, positions.label + begin);
      const T hot = static_cast<T>(targets_.soft.kept), soft = static_cast<T>(targets_.soft.constant);
      for (int p = begin; p < end; ++p) {
        const int64_t label = positions.label[p];
        if (label == arguments_.ignore_index) continue;
        const T weight = targets_.soft.weight ? targets_.soft.weight[label] : T(1);
        positions.hot[p] = hot * weight;
        positions.soft_at_label[p] = soft * weight;
        positions.x_y[p] = x[label * kPositions + p];
        positions.valid[p] = 1;
      }
    });
    return positions;
  }

  // The soft targets of class c, for the positions from p on.
  V soft_of(const T* probabilities, int64_t c, int p) const {
    if (!probabilities) return splat<V>(targets_.shared.empty() ? targets_.soft.constant : targets_.shared[c]);
    const T weight = targets_.soft.weight ? targets_.soft.weight[c] : T(1);
    const V kept = load(probabilities + c * kPositions + p) * static_cast<T>(targets_.soft.kept);
    return (kept + static_cast<T>(targets_.soft.constant)) * weight;
  }

  // Calls body(p) for the first position p of each register of positions.
  template <class Body>
  static void for_each_lane_group(const Body& body) {
    for (int p = 0; p < kPositions; p += kLanes<T>) body(p);
  }

  // Adds up what add(c, sums) adds to `count` sums of each position of a register, over all classes c. A float32 sum of
  // thousands of terms rounds the next ones away: so sums of kClassBlock classes go into doubles.
  template <int count, class Add>
  void add_up(V (&totals)[count], const Add& add) const {
    const int64_t classes = arguments_.classes;
    for (V& total : totals) total = V{};
    for (int64_t c = 0; c < std::min(classes, kClassBlock); ++c) add(c, totals);
    if (classes <= kClassBlock) return;
    double doubles[count][kLanes<T>];
    for (int k = 0; k < count; ++k) {
      for (int lane = 0; lane < kLanes<T>; ++lane) doubles[k][lane] = totals[k][lane];
    }
    for (int64_t begin = kClassBlock; begin < classes; begin += kClassBlock) {
      V sums[count] = {};
      for (int64_t c = begin; c < std::min(classes, begin + kClassBlock); ++c) add(c, sums);
      for (int k = 0; k < count; ++k) {
        for (int lane = 0; lane < kLanes<T>; ++lane) doubles[k][lane] += sums[k][lane];
      }
    }
    for (int k = 0; k < count; ++k) {
      for (int lane = 0; lane < kLanes<T>; ++lane) totals[k][lane] = static_cast<T>(doubles[k][lane]);
    }
  }

  // `gradient` is a tile that is written, or null.
  double passes(const T* x, T* gradient, int64_t first, int count, Scratch& scratch) {
    const Positions positions = read_positions(x, first, count);
    const T* probabilities = nullptr;
    if (arguments_.probabilities.data) {
      probabilities = gather_tile(arguments_, arguments_.probabilities, first, count, scratch.probabilities);
    }

    Statistics s;
    const bool known = arguments_.backward && arguments_.reference;
    if (known) {
      std::fill_n(s.sum, kPositions, T(1));
      std::copy_n(static_cast<const T*>(arguments_.reference) + first, count, s.reference);
      std::copy_n(static_cast<const T*>(arguments_.sum) + first, count, s.sum);
      if (arguments_.mean_excess)
        std::copy_n(static_cast<const T*>(arguments_.mean_excess) + first, count, s.mean_excess);
      if (probabilities) soft_mass(probabilities, s.mass);
    } else {
      soft_ ? statistics<true>(x, probabilities, gradient, s) : statistics<false>(x, probabilities, gradient, s);
      if (arguments_.terms.entropy != 0) find_mean_excess(x, s);
      if (arguments_.reference) keep(positions, first, count, s);
    }
    if (!probabilities) std::fill_n(s.mass, kPositions, static_cast<T>(targets_.shared_mass));
    if (arguments_.argmax) find_largest(x, positions, first, count);

    if (arguments_.probabilities_gradient.data) {
      emit_probabilities_gradient(x, positions, s, scratch);
      scatter_tile(arguments_, arguments_.probabilities_gradient, first, count, scratch.probabilities_gradient.data(),
                   false);
    }
    if (gradient) {
      const Terms terms = terms_ ? terms_gradient(positions, s) : Terms();
      const auto emitted = [&](auto soft, auto kept) {
        emit<soft.value, kept.value>(x, gradient, probabilities, positions, s, terms);
      };
      using Yes = std::true_type;
      using No = std::false_type;
      if (known) {
        soft_ ? emitted(Yes{}, No{}) : emitted(No{}, No{});
      } else {
        soft_ ? emitted(Yes{}, Yes{}) : emitted(No{}, Yes{});
      }
      if (arguments_.labels.data) {
        Lanes correction;
        at_labels(positions, s, terms, correction);
        for (int p = 0; p < count; ++p) {
          if (positions.valid[p] != 0) gradient[positions.label[p] * kPositions + p] = correction[p];
        }
      }
    }
    return arguments_.backward ? 0 : values(positions, first, count, s);
  }

  // Writes the sum of the soft targets of each position.
  void soft_mass(const T* probabilities, Lanes& mass) const {
    for_each_lane_group([&](int p) {
      V sum[1];
      add_up(sum, [&](int64_t c, V(&sums)[1]) { sums[0] += soft_of(probabilities, c, p); });
      store(mass + p, sum[0]);
    });
  }

  // The numerators go to `numerators`, unless it is null.
  template <bool kSoft>
  void statistics(const T* x, const T* probabilities, T* numerators, Statistics& found) const {
    for_each_lane_group([&](int p) {
      V reference = splat<V>(-std::numeric_limits<T>::infinity());
      for (int64_t c = 0; c < arguments_.classes; ++c) reference = larger(load(x + c * kPositions + p), reference);
      V totals[kSoft ? 3 : 1];
      add_up(totals, [&](int64_t c, auto& sums) {
        const V difference = load(x + c * kPositions + p) - reference, e = exp_below_88(difference);
        if (numerators) store(numerators + c * kPositions + p, e);
        sums[0] += e;
        if constexpr (kSoft) {
          const V q = soft_of(probabilities, c, p);
          sums[1] += q * difference;
          if (probabilities) sums[2] += q;
        }
      });
      store(found.reference + p, reference);
      store(found.sum + p, totals[0]);
      if constexpr (kSoft) {
        store(found.cross + p, totals[1]);
        store(found.mass + p, totals[2]);
      }
    });
  }

  void find_mean_excess(const T* x, Statistics& s) const {
    for_each_lane_group([&](int p) {
      const V reference = load(s.reference + p);
      V sum[1];
      add_up(sum, [&](int64_t c, V(&sums)[1]) {
        const V difference = load(x + c * kPositions + p) - reference;
        sums[0] += excess(exp_below_88(difference), difference);
      });
      store(s.mean_excess + p, sum[0] / load(s.sum + p));
    });
  }

  // Writes the statistics of `count` positions for the backward.
  void keep(const Positions& positions, int64_t first, int count, const Statistics& s) const {
    T* const reference = static_cast<T*>(arguments_.reference) + first;
    T* const sum = static_cast<T*>(arguments_.sum) + first;
    for (int p = 0; p < count; ++p) {
      const bool valid = positions.valid[p] != 0;
      reference[p] = valid ? s.reference[p] : T(0);
      // Where all logits are -inf, the exponentials relative to that are NaN; relative to any other number, they are 0.
      const bool masked = s.reference[p] == -std::numeric_limits<T>::infinity();
      sum[p] = valid ? (masked ? T(0) : s.sum[p]) : T(1);
      if (arguments_.mean_excess) static_cast<T*>(arguments_.mean_excess)[first + p] = valid ? s.mean_excess[p] : T(0);
    }
  }

  void find_largest(const T* x, const Positions& positions, int64_t first, int count) const {
    for (int p = 0; p < count; ++p) {
      Largest largest;
      for (int64_t c = 0; positions.valid[p] != 0 && c < arguments_.classes; ++c) {
        largest.look_at(x[c * kPositions + p], c);
      }
      arguments_.argmax[first + p] = largest.at;
    }
  }

  Terms terms_gradient(const Positions& positions, const Statistics& s) const {
    Terms terms;
    for (int p = 0; p < kPositions; ++p) {
      const SoftmaxState<T> state{s.reference[p], s.sum[p], s.mass[p], s.cross[p], s.mean_excess[p] * s.sum[p]};
      const SoftmaxTermsGradient<T> gradient(state, static_cast<T>(arguments_.terms.z_loss),
                                             static_cast<T>(arguments_.terms.entropy), positions.scale[p],
                                             positions.lse_upstream[p]);
      terms.numerator_factor[p] = gradient.numerator_factor;
      terms.excess_factor[p] = gradient.excess_factor;
    }
    return terms;
  }

  // What terms add to the gradient at logits that are `difference` above the reference, whose numerators are e.
  static V from_terms(const Terms& terms, int p, V e, V difference) {
    return e * load(terms.numerator_factor + p) + excess(e, difference) * load(terms.excess_factor + p);
  }

  // Where numerators are kept, the gradient takes their place.
  template <bool kSoft, bool kKept>
  void emit(const T* x, T* gradient, const T* probabilities, const Positions& positions, const Statistics& s,
            const Terms& terms) const {
    for_each_lane_group([&](int p) {
      const V scale = load(positions.scale + p), reference = load(s.reference + p);
      const V factor = (load(positions.hot + p) + load(s.mass + p)) * scale / load(s.sum + p);
      const auto counts = load(positions.valid + p) != V{};
      for (int64_t c = 0; c < arguments_.classes; ++c) {
        T* const to = gradient + c * kPositions + p;
        const V logits = load(x + c * kPositions + p), difference = logits - reference;
        const V e = kKept ? load(to) : exp_below_88(difference);
        V v = e * factor;
        if constexpr (kSoft) v -= soft_of(probabilities, c, p) * scale;
        if (terms_) v = (v + from_terms(terms, p, e, difference)) * map_.slope(logits);
        store(to, select(counts, v, V{}));
      }
    });
  }

  void emit_probabilities_gradient(const T* x, const Positions& positions, const Statistics& s,
                                   Scratch& scratch) const {
    scratch.probabilities_gradient.resize(arguments_.classes * kPositions);
    const T kept = static_cast<T>(targets_.soft.kept);
    for (int64_t c = 0; c < arguments_.classes; ++c) {
      const T weight = targets_.soft.weight ? targets_.soft.weight[c] * kept : kept;
      for_each_lane_group([&](int p) {
        const V v = (load(s.reference + p) - load(x + c * kPositions + p)) + log(load(s.sum + p));
        store(&scratch.probabilities_gradient[c * kPositions + p], v * (load(positions.scale + p) * weight));
      });
    }
  }

  // The gradient at each position's label, where its terms nearly cancel: they are subtracted before they are divided.
  void at_labels(const Positions& positions, const Statistics& s, const Terms& terms, Lanes& result) const {
    for_each_lane_group([&](int p) {
      const V hot = load(positions.hot + p), sum = load(s.sum + p);
      const V x_y = load(positions.x_y + p), below = x_y - load(s.reference + p), numerator = exp_below_88(below);
      const V difference = numerator * (hot + load(s.mass + p)) - sum * (hot + load(positions.soft_at_label + p));
      V v = difference / sum * load(positions.scale + p);
      if (terms_) v = (v + from_terms(terms, p, numerator, below)) * map_.slope(x_y);
      store(result + p, v);
    });
  }

  double values(const Positions& positions, int64_t first, int count, const Statistics& s) const {
    const V z_loss = splat<V>(arguments_.terms.z_loss), entropy = splat<V>(arguments_.terms.entropy);
    Lanes value;
    V total{};
    for_each_lane_group([&](int p) {
      const V log_sum = log(load(s.sum + p)), reference = load(s.reference + p);
      V v{};
      if (arguments_.labels.data) v = load(positions.hot + p) * ((reference - load(positions.x_y + p)) + log_sum);
      if (soft_) v += load(s.mass + p) * log_sum - load(s.cross + p);
      if (arguments_.terms.z_loss != 0) v += z_loss * (reference + log_sum) * (reference + log_sum);
      if (arguments_.terms.entropy != 0) v -= entropy * (log_sum - load(s.mean_excess + p));
      v = select(load(positions.valid + p) != V{}, v, V{});
      store(value + p, v);
      total += v;
    });
    if (arguments_.losses.data) {
      for (int p = 0; p < count; ++p) store_loss(arguments_, first + p, value[p]);
    }
    return sum_of_lanes(total);
  }

  const SoftmaxArguments& arguments_;
  const Targets<T> targets_;
  const bool soft_;
  const bool terms_;
  const LogitMap<T> map_;
  const bool streams_;
};

}  // namespace fused_losses
