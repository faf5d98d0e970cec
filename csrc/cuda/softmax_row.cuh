// One row of a softmax, whose classes lie side by side: some threads of a warp share it, or a block.
//
// Reading order: operator(), which calls add_up() for the sums over the row, then emit() for its gradients.
#pragma once

#include "row_sums.cuh"
#include "softmax_logits.cuh"
#include "softmax_numerators.cuh"
#include "softmax_packs.cuh"

namespace fused_losses {

template <class Access, Soft soft, Terms terms, bool kInBlock>
class SoftmaxRow {
  using S = typename Access::S;
  using T = Compute<S>;
  using Packs = RowPacks<Access, kInBlock, kIsLean<Compute<typename Access::S>, soft, terms>>;
  using Held = typename Access::Held;
  static constexpr int kElements = Access::kElements;
  static constexpr bool kRounded = sizeof(S) == 2;
  static constexpr int kNoClass = INT32_MAX;  // after all others
  using Powers = Numerators<T, kRounded && terms != Terms::kAny>;
  using Sums = SoftmaxSums<T>;
  using LargestLogit = Largest<S, kRounded && (kElements > 1)>;

 public:
  using RowTargets = Targets<T, soft != Soft::kNone, terms != Terms::kNone>;

  __device__ SoftmaxRow(const SoftmaxKernel& kernel, const RowTargets& targets, const Group& group, Held* memory)
      : tensors_(kernel.tensors),
        targets_(targets),
        logits_(tensors_.terms),
        soft_(tensors_),
        group_(group),
        packs_(group, memory, kernel.held_packs) {
    if (soft == Soft::kAny && !soft_.has_probabilities()) common_mass_ = targets.mass_of_smoothing();
    if (soft == Soft::kEqual) common_mass_ = static_cast<T>(tensors_.classes) * soft_.constant();
  }

  // Writes the results of row i; returns its loss to one thread of the group, and 0 to others. Called by all threads of
  // the block.
  __device__ T operator()(int64_t i) {
    const bool live = i < positions_of(tensors_);
    const Position position = live ? position_of(tensors_, i) : Position{0, 0};
    const int64_t y = live && tensors_.labels.data ? label_of(tensors_, position) : -1;
    const bool counts = live && (y >= 0 || !tensors_.labels.data);
    x_ = row_of<const S>(tensors_.input, position);
    gradient_ = row_of<S>(tensors_.input_gradient, position);
    counts_ = counts;
    // Where statistics are given, a row is read once.
    packs_.cut(x_, live ? static_cast<int>(tensors_.classes) : 0, !targets_.given());
    Held held[Packs::kHeld];
    if (counts) packs_.fetch(held);
    if (counts && packs_.has_edge()) edge_ = static_cast<T>(x_[packs_.edge_class()]);
    hot_ = targets_.hot(position, y, counts);
    if (y >= 0) hot_.x_y = logits_(static_cast<T>(x_[y])).x;
    soft_.start(position);

    SoftmaxState<T> state;
    int largest = kNoClass;
    if (targets_.given()) {
      if (counts) state = targets_.read(i);
      if (soft == Soft::kAny && soft_.has_probabilities()) state.mass = mass();
    } else {
      state = add_up(held);
      if (tensors_.argmax) largest = class_of(state.reference);
    }
    if (soft == Soft::kEqual) {
      state.mass = common_mass_;
      state.cross *= soft_.constant();
    } else if (soft == Soft::kAny && !soft_.has_probabilities()) {
      state.mass = common_mass_;
    }

    // If the gradient overwrites the logits, no thread may write an element that another one has yet to read.
    group_.sync();
    if (gradient_ || tensors_.probabilities_gradient.data) emit(state, held);
    if (!live || !group_.leads()) return T(0);
    return targets_.finish(i, hot_, state, largest == kNoClass ? -1 : largest);
  }

 private:
  template <class Element>
  __device__ Element* row_of(const ClassTensor& tensor, const Position& position) const {
    if (!tensor.data) return nullptr;
    return static_cast<Element*>(tensor.data) + offset_of(tensors_, tensor.strides, position);
  }

  // The sums of neighbouring elements, the first one of which is of class c.
  template <int count>
  __device__ Sums sums_of(const Powers& powers, const T* given, int c) const {
    Sums sums;
    T q[count], e[count];
    if constexpr (soft == Soft::kAny) soft_.template load<count>(c, q);
    unrolled<count>([&](int j) {
      const T t = powers.exponent(logits_(given[j]).x);
      e[j] = powers.power(t);
      if constexpr (soft == Soft::kEqual) sums.qt += t;
      if constexpr (soft == Soft::kAny) {
        sums.mass += q[j];
        sums.qt = multiply_add(q[j], t, sums.qt);
      }
      if constexpr (terms == Terms::kAny) sums.et += excess(e[j], t);
    });
    sums.e = sum_in_pairs<count>(e);
    if constexpr (soft == Soft::kEqual) sums.mass = count;
    return sums;
  }
  template <int count>
  __device__ Sums sums_of_packs(const Powers& powers, const Held* packs, int first) const {
    Sums sums;
    packs_.template for_each<count>(first, [&](int k, int p) {
      T given[kElements];
      Access::unpack(packs[k], given);
      sums.add(sums_of<kElements>(powers, given, packs_.first_class(p)));
    });
    return sums;
  }

  // The largest logit of some packs.
  template <int count>
  __device__ void find_largest(LargestLogit& largest, const Held* packs, int first) const {
    packs_.template for_each<count>(first, [&](int k, int) { Access::add(packs[k], largest); });
  }

  // The state of the whole row.
  __device__ SoftmaxState<T> add_up(const Held* held) const {
    SoftmaxState<T> others;
    LargestLogit largest(logits_.descend());
    if (counts_) {
      if constexpr (kInBlock) {
        if (!packs_.keeps_all()) others = add_up_others();
        wait_for_copies();
      }
      packs_.for_kept(held,
                      [&](auto count, const Held* packs, int first) { find_largest<count>(largest, packs, first); });
      if (packs_.has_edge()) largest.add(edge_);
    }
    T reference = larger_of(others.reference, logits_(largest.value()).x);
    combine<kInBlock, true, 1>(group_, &reference);

    const Powers powers(reference);
    Sums sums;
    if (counts_) {
      if constexpr (kInBlock) {
        if (!packs_.keeps_all()) {
          others.raise(reference);
          sums = powers.sums(others);
        }
      }
      packs_.for_kept(held, [&](auto count, const Held* packs, int first) {
        sums.add(sums_of_packs<count>(powers, packs, first));
      });
      if (packs_.has_edge()) sums.add(sums_of<1>(powers, &edge_, packs_.edge_class()));
    }
    return powers.state(merged(sums));
  }

  // The sums of this thread's packs that are not on the chip, relative to the largest of their logits.
  __device__ SoftmaxState<T> add_up_others() const {
    T reference = static_cast<T>(-INFINITY);
    Powers powers(reference);
    Sums sums;
    packs_.for_others([&](auto count, const Held* packs, int first) {
      LargestLogit largest(logits_.descend());
      find_largest<count>(largest, packs, first);
      const T larger = logits_(largest.value()).x;
      if (larger > reference) {
        SoftmaxState<T> state = powers.state(sums);
        state.raise(larger);
        reference = larger;
        powers = Powers(reference);
        sums = powers.sums(state);
      }
      sums.add(sums_of_packs<count>(powers, packs, first));
    });
    return powers.state(sums);
  }

  __device__ Sums merged(const Sums& own) const {
    constexpr int kNumbers = terms == Terms::kAny ? 4 : soft == Soft::kNone ? 1 : 3;
    T numbers[] = {own.e, own.mass, own.qt, own.et};
    combine<kInBlock, false, kNumbers>(group_, numbers);
    return {numbers[0], numbers[1], numbers[2], numbers[3]};
  }

  // The first class of the logit x.
  __device__ int class_of(T x) const {
    int first = kNoClass;
    if (counts_) {
      for (int c = static_cast<int>(tensors_.classes) - 1 - group_.lane(); c >= 0; c -= group_.lanes()) {
        if (logits_(static_cast<T>(x_[c])).x == x) first = c;
      }
    }
    group_.template merge_all<1>(&first, [](const int* other, int* own) { *own = std::min(*own, *other); });
    return first;
  }

  // The sum of the soft targets of a row whose statistics are given.
  __device__ T mass() const {
    T sum = 0;
    if (counts_) {
      packs_.for_all([&](int p) { sum += soft_.template mass<kElements>(packs_.first_class(p)); });
      if (packs_.has_edge()) sum += soft_.template mass<1>(packs_.edge_class());
    }
    return group_.sum(sum);
  }

  // Writes the gradients of the row.
  __device__ void emit(const SoftmaxState<T>& state, const Held* held) const {
    const Powers powers(state.reference);
    Slopes<T> slopes = targets_.slopes(state, hot_);
    slopes.numerator_factor = divide_by_normal(slopes.numerator_factor, powers.unit());
    T others = 0;  // the sum of the numerators of all classes but the label
    const auto pass = [&](auto count, const Held* packs, int first) {
      T some = 0;
      packs_.template for_each<count>(first, [&](int k, int p) {
        T given[kElements], made[kElements];
        Access::unpack(packs[k], given);
        some += gradients<kElements>(powers, slopes, log(state.sum), given, packs_.first_class(p), made);
        if (soft != Soft::kAny || gradient_) Access::store(gradient_ + packs_.first_class(0), p, made);
      });
      others += some;
    };
    if (counts_) {
      packs_.for_others(pass);
      packs_.for_kept(held, pass);
      if (packs_.has_edge()) {
        T made;
        others += gradients<1>(powers, slopes, log(state.sum), &edge_, packs_.edge_class(), &made);
        if (gradient_) gradient_[packs_.edge_class()] = static_cast<S>(made);
      }
    } else if (gradient_) {
      const T zeros[kElements]{};
      packs_.for_all([&](int p) { Access::store(gradient_ + packs_.first_class(0), p, zeros); });
      if (packs_.has_edge()) gradient_[packs_.edge_class()] = static_cast<S>(T(0));
    }
    if (gradient_ && tensors_.labels.data) emit_label(powers, slopes, state, others);
  }

  // The gradients of neighbouring elements, the first one of which is of class c. Returns the sum of the numerators of
  // those that are not the label, where emit_label() asks for it.
  template <int count>
  __device__ T gradients(const Powers& powers, const Slopes<T>& slopes, T log_sum, const T* given, int c,
                         T* made) const {
    const int label = static_cast<int>(hot_.y) - c;
    T others = 0, q[count];
    if constexpr (soft == Soft::kAny) {
      soft_.template load<count>(c, q);
      if (tensors_.probabilities_gradient.data) {
        T x[count];
        unrolled<count>([&](int j) { x[j] = logits_(given[j]).x; });
        soft_.template differentiate<count>(slopes.reference, log_sum, hot_.slope, x, c);
      }
    }
    unrolled<count>([&](int j) {
      const Mapped<T> mapped = logits_(given[j]);
      const T t = powers.exponent(mapped.x), e = powers.power(t);
      if (!kRounded && j != label) others += e;
      T slope = e * slopes.numerator_factor;
      if constexpr (terms == Terms::kAny) slope += excess(e, t) * slopes.terms.excess_factor;
      if constexpr (soft == Soft::kEqual)
        slope = multiply_add(e, slopes.numerator_factor, -soft_.constant() * hot_.slope);
      if constexpr (soft == Soft::kAny) slope = multiply_add(-q[j], hot_.slope, slope);
      made[j] = slope * mapped.slope;
    });
    return others;
  }

  // The thread that has stored the label's pack, or its edge, stores the label's own element.
  __device__ void emit_label(const Powers& powers, const Slopes<T>& slopes, const SoftmaxState<T>& state,
                             T others) const {
    const T e_y = divide_by_normal(powers.power(powers.exponent(hot_.x_y)), powers.unit());
    if constexpr (kRounded) {
      others = state.sum - e_y;
    } else {
      combine<kInBlock, false, 1>(group_, &others);
    }
    if (!counts_) return;
    const int y = static_cast<int>(hot_.y);
    if (!packs_.has_class(y)) return;
    gradient_[y] = static_cast<S>(targets_.gradient_at_label(slopes, state, hot_, e_y, others));
  }

  const SoftmaxArguments& tensors_;
  const RowTargets& targets_;
  const Logits<T, terms> logits_;
  SoftTargets<S> soft_;
  const Group& group_;
  Packs packs_;
  T common_mass_ = 0;
  // What is known of the row in work: where it begins, and its gradient; whether it is not ignored; this thread's edge.
  const S* x_;
  S* gradient_;
  bool counts_;
  T edge_ = 0;
  Hot<T> hot_;
};

}  // namespace fused_losses
