// Softmax where the classes of a row do not lie side by side, as in images (N, C, H, W), or are few: many positions at
// once, one to a lane. The first pass reads a tile of positions and classes into cache, where the other two find it.
//
// Reading order: run() gives tiles to threads; tile() gathers a tile unless it lies ready; passes() does the rest, in
// this order: read_positions(), what is known before the logits are read; statistics(), maximum first, then sums;
// emit(), the gradient; at_labels(), the one element of each position that needs more care; values(), the losses.
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
        map_(arguments.terms) {}

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
        return sum;
      };
    });
  }

 private:
  // Gathered tiles, [classes][kPositions]; empty until one is needed.
  struct Scratch {
    std::vector<T> input, probabilities, input_gradient, probabilities_gradient;
  };

  double tile(int64_t first, int count, Scratch& scratch) {
    const ClassTensor& gradient = arguments_.input_gradient;
    const bool in_place = !terms_ && lies_ready<S>(arguments_, arguments_.input, first, count) &&
                          (!gradient.data || lies_ready<S>(arguments_, gradient, first, count));
    if (in_place) {
      const auto start = [&](const ClassTensor& tensor) {
        return tensor.data
                   ? const_cast<S*>(at<S>(arguments_, tensor, first / arguments_.inner, first % arguments_.inner))
                   : nullptr;
      };
      const TileView<S> x{start(arguments_.input), arguments_.input.strides.classes};
      return passes(x, TileView<S>{start(gradient), gradient.strides.classes}, first, count, scratch);
    }
    const TileView<T> x = gather_tile(arguments_, arguments_.input, first, count, scratch.input);
    if (terms_) map_logits(map_, x.data, arguments_.classes * kPositions, x.data);
    if (!gradient.data) return passes(x, TileView<T>{nullptr, 0}, first, count, scratch);
    scratch.input_gradient.resize(arguments_.classes * kPositions);
    const double value = passes(x, TileView<T>{scratch.input_gradient.data(), kPositions}, first, count, scratch);
    scatter_tile(arguments_, gradient, first, count, scratch.input_gradient);
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

  template <class E>
  Positions read_positions(TileView<E> x, int64_t first, int count) const {
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
        positions.x_y[p] = static_cast<T>(x.row(label)[p]);
        positions.valid[p] = 1;
      }
    });
    return positions;
  }

  // The soft targets of class c, for the positions from p on.
  V soft_of(TileView<T> probabilities, int64_t c, int p) const {
    const T weight = targets_.soft.weight ? targets_.soft.weight[c] : T(1);
    V q = splat<V>(targets_.soft.constant);
    if (probabilities.data) q += load(probabilities.row(c) + p) * static_cast<T>(targets_.soft.kept);
    return q * weight;
  }

  // Writes the sum of the soft targets of each position.
  void soft_mass(TileView<T> probabilities, Lanes& mass) const {
    double sums[kPositions] = {};
    for (int64_t c = 0; c < arguments_.classes; ++c) {
      Lanes q;
      for_each_lane_group([&](int p) { store(q + p, soft_of(probabilities, c, p)); });
      for (int p = 0; p < kPositions; ++p) sums[p] += q[p];
    }
    for (int p = 0; p < kPositions; ++p) mass[p] = static_cast<T>(sums[p]);
  }

  // Calls body(p) for the first position p of each register of positions.
  template <class Body>
  static void for_each_lane_group(const Body& body) {
    for (int p = 0; p < kPositions; p += kLanes<T>) body(p);
  }

  template <class E>
  double passes(TileView<E> x, TileView<E> gradient, int64_t first, int count, Scratch& scratch) {
    const Positions positions = read_positions(x, first, count);
    TileView<T> probabilities{nullptr, 0};
    if (arguments_.probabilities.data) {
      probabilities = gather_tile(arguments_, arguments_.probabilities, first, count, scratch.probabilities);
    }

    Statistics s;
    if (arguments_.backward && arguments_.reference) {
      std::fill_n(s.sum, kPositions, T(1));
      std::copy_n(static_cast<const T*>(arguments_.reference) + first, count, s.reference);
      std::copy_n(static_cast<const T*>(arguments_.sum) + first, count, s.sum);
      if (arguments_.mean_excess)
        std::copy_n(static_cast<const T*>(arguments_.mean_excess) + first, count, s.mean_excess);
      if (soft_) soft_mass(probabilities, s.mass);
    } else {
      soft_ ? statistics<true>(x, probabilities, s) : statistics<false>(x, probabilities, s);
      if (arguments_.terms.entropy != 0) find_mean_excess(x, s);
      if (arguments_.reference) keep(positions, first, count, s);
    }
    if (arguments_.argmax) find_largest(x, positions, first, count);

    if (arguments_.probabilities_gradient.data) {
      emit_probabilities_gradient(x, positions, s, scratch);
      scatter_tile(arguments_, arguments_.probabilities_gradient, first, count, scratch.probabilities_gradient);
    }
    if (gradient.data) {
      const Terms terms = terms_ ? terms_gradient(positions, s) : Terms();
      soft_ ? emit<true>(x, gradient, probabilities, positions, s, terms)
            : emit<false>(x, gradient, probabilities, positions, s, terms);
      if (arguments_.labels.data) {
        Lanes correction;
        at_labels(positions, s, terms, correction);
        for (int p = 0; p < count; ++p) {
          if (positions.valid[p] != 0) gradient.row(positions.label[p])[p] = static_cast<E>(correction[p]);
        }
      }
    }
    return arguments_.backward ? 0 : values(positions, first, count, s);
  }

  template <bool kSoft, class E>
  void statistics(TileView<E> x, TileView<T> probabilities, Statistics& found) const {
    const int64_t classes = arguments_.classes;
    Lanes& reference = found.reference;
    std::fill_n(reference, kPositions, -std::numeric_limits<T>::infinity());
    for (int64_t c = 0; c < classes; ++c) {
      for_each_lane_group([&](int p) {
        const V v = load(x.row(c) + p), m = load(reference + p);
        store(reference + p, larger(v, m));
      });
    }
    // A float32 sum of thousands of terms rounds the next ones away: so sums of kClassBlock classes go into doubles.
    double sums[3][kPositions] = {};
    for (int64_t begin = 0; begin < classes; begin += kClassBlock) {
      const int64_t end = std::min(classes, begin + kClassBlock);
      Lanes block[3] = {};
      for (int64_t c = begin; c < end; ++c) {
        for_each_lane_group([&](int p) {
          const V difference = load(x.row(c) + p) - load(reference + p);
          store(block[0] + p, load(block[0] + p) + exp_below_88(difference));
          if constexpr (kSoft) {
            const V q = soft_of(probabilities, c, p);
            store(block[1] + p, load(block[1] + p) + q);
            store(block[2] + p, load(block[2] + p) + q * difference);
          }
        });
      }
      for (int k = 0; k < (kSoft ? 3 : 1); ++k) {
        for (int p = 0; p < kPositions; ++p) sums[k][p] += block[k][p];
      }
    }
    for (int p = 0; p < kPositions; ++p) {
      found.sum[p] = static_cast<T>(sums[0][p]);
      found.mass[p] = static_cast<T>(sums[1][p]);
      found.cross[p] = static_cast<T>(sums[2][p]);
    }
  }

  template <class E>
  void find_mean_excess(TileView<E> x, Statistics& s) const {
    double sums[kPositions] = {};
    for (int64_t begin = 0; begin < arguments_.classes; begin += kClassBlock) {
      Lanes block{};
      for (int64_t c = begin; c < std::min(arguments_.classes, begin + kClassBlock); ++c) {
        for_each_lane_group([&](int p) {
          const V difference = load(x.row(c) + p) - load(s.reference + p);
          store(block + p, load(block + p) + excess(exp_below_88(difference), difference));
        });
      }
      for (int p = 0; p < kPositions; ++p) sums[p] += block[p];
    }
    for (int p = 0; p < kPositions; ++p) s.mean_excess[p] = static_cast<T>(sums[p] / s.sum[p]);
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

  template <class E>
  void find_largest(TileView<E> x, const Positions& positions, int64_t first, int count) const {
    for (int p = 0; p < count; ++p) {
      Largest largest;
      for (int64_t c = 0; positions.valid[p] != 0 && c < arguments_.classes; ++c) {
        largest.look_at(static_cast<T>(x.row(c)[p]), c);
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

  template <bool kSoft, class E>
  void emit(TileView<E> x, TileView<E> gradient, TileView<T> probabilities, const Positions& positions,
            const Statistics& s, const Terms& terms) const {
    Lanes factor;
    for_each_lane_group([&](int p) {
      store(factor + p, (load(positions.hot + p) + load(s.mass + p)) * load(positions.scale + p) / load(s.sum + p));
    });
    for (int64_t c = 0; c < arguments_.classes; ++c) {
      for_each_lane_group([&](int p) {
        const V logits = load(x.row(c) + p), difference = logits - load(s.reference + p), e = exp_below_88(difference);
        V v = e * load(factor + p);
        if constexpr (kSoft) v -= soft_of(probabilities, c, p) * load(positions.scale + p);
        if (terms_) v = (v + from_terms(terms, p, e, difference)) * map_.slope(logits);
        store(gradient.row(c) + p, select(load(positions.valid + p) != V{}, v, V{}));
      });
    }
  }

  template <class E>
  void emit_probabilities_gradient(TileView<E> x, const Positions& positions, const Statistics& s,
                                   Scratch& scratch) const {
    scratch.probabilities_gradient.resize(arguments_.classes * kPositions);
    const T kept = static_cast<T>(targets_.soft.kept);
    for (int64_t c = 0; c < arguments_.classes; ++c) {
      const T weight = targets_.soft.weight ? targets_.soft.weight[c] * kept : kept;
      for_each_lane_group([&](int p) {
        const V v = (load(s.reference + p) - load(x.row(c) + p)) + log(load(s.sum + p));
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
};

}  // namespace fused_losses
