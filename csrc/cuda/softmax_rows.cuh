// Softmax over classes that lie side by side: a group of threads for each row. What fits of the logits stays on the
// chip, first in registers, then in shared memory, in their storage type; only what is left is read again. So
// numerators are computed twice, which costs less than keeping them: half as many rows would be in work at once.
//
// Reading order: launch_softmax_rows() at the end chooses how many threads share a row; softmax_rows_kernel() gives
// rows to groups; SoftmaxRow does one row: add() is its first pass, emit() its second, finish_label() the element at
// the label.
#pragma once

#include "softmax_targets.cuh"

namespace fused_losses {

// The most threads of a block. 512 leave 128 of a multiprocessor's registers to each; soft targets and float64, which
// need more, get 256 threads. It must not depend on kTerms, so that a loss is the same bits with terms and without.
template <class T, bool kSoft>
inline constexpr int kMostThreads = sizeof(T) == sizeof(float) && !kSoft ? 512 : 256;

// Packs, of four registers each, that a thread holds: as many as its other registers leave. Soft targets and float64
// leave few.
template <class T, bool kSoft>
inline constexpr int kHeldPacks = sizeof(T) == sizeof(float) ? (kSoft ? 4 : 8) : (kSoft ? 1 : 2);

// A row that a block shares gets more threads until each has so many packs of it: 8 in registers, and as many in shared
// memory.
inline constexpr int kPacksOfThread = 16;

template <class Access, bool kSoft, bool kTerms>
class SoftmaxRow {
  using T = typename Access::T;
  using Held = typename Access::Held;
  static constexpr int kElements = Access::kElements;
  static constexpr int kHeld = kHeldPacks<T, kSoft>;
  static constexpr bool kRounded = Access::kRounded;
  static constexpr int kNone = INT32_MAX;  // a class after all others

 public:
  __device__ SoftmaxRow(const SoftmaxKernel& kernel, const Targets<T, kSoft, kTerms>& targets, const Group& group,
                        Held* memory)
      : kernel_(kernel), tensors_(kernel.tensors), targets_(targets), group_(group), memory_(memory) {
    if (kSoft && !tensors_.probabilities.data) common_mass_ = targets.mass_of_smoothing();
  }

  // Writes the results of row i; returns its loss to one thread of the group, and 0 to others. Called by all threads of
  // the block.
  __device__ T operator()(int64_t i) {
    const bool live = i < positions_of(tensors_);
    const Position position = live ? position_of(tensors_, i) : Position{0, 0};
    const Line x = line(tensors_.input, position), gradient = line(tensors_.input_gradient, position);
    t_ = line(tensors_.probabilities, position);
    t_gradient_ = line(tensors_.probabilities_gradient, position);
    hot_ = targets_.hot(position, live);
    const int shift = static_cast<int>(kernel_.shift + x.offset) & (kElements - 1);
    const int classes = static_cast<int>(tensors_.classes);
    span_ = {shift, hot_.counts ? classes : 0};
    const int packs = span_.packs<kElements>();
    Held held[kHeld];
    for_held([&](int h, int p) {
      if (p < packs) held[h] = load(x, p);
    });
    SoftmaxState<T> state;
    largest_ = kNone;
    const bool given = targets_.given();
    if (given) {
      if (hot_.counts) state = targets_.read(i);
      if (kSoft && t_.data) state.mass = mass(packs);
    } else {
      for_held([&](int h, int p) {
        if (p < packs) add(state, p, held[h]);
      });
      if (packs > beyond()) {
        SoftmaxRuns<T> runs{state};
        for (int slot = group_.lane(); slot < packs - beyond(); slot += group_.lanes()) {
          const Held pack = load(x, beyond() + slot);
          if (slot < kernel_.held_packs) memory_[slot] = pack;
          add(runs.run, beyond() + slot, pack);
          runs.step();
        }
        state = runs.total();
      }
      merge(state);
    }
    if (kSoft && !tensors_.probabilities.data) state.mass = common_mass_;
    state_ = state;

    // If the gradient overwrites the logits, no thread may write an element that another one has yet to read.
    group_.sync();
    unrolled<kHeld>([&](int h) { held[h].forget(); });
    SumOfRuns<T> others;
    if (gradient.data || t_gradient_.data) {
      slopes_ = targets_.slopes(state, hot_);
      log_sum_ = t_gradient_.data ? log(state.sum) : T(0);
      if (hot_.counts) {
        for (int slot = packs - beyond() - 1 - last_lane(packs); slot >= 0; slot -= group_.lanes()) {
          const bool on_chip = !given && slot < kernel_.held_packs;
          const Held pack = on_chip ? memory_[slot] : load(x, beyond() + slot);
          emit(gradient, beyond() + slot, pack, others);
        }
        for_held([&](int h, int p) {
          if (p < packs) emit(gradient, p, held[h], others);
        });
      } else if (live && gradient.data) {
        clear(gradient, {shift, classes});
      }
      if (tensors_.labels.data) finish_label(gradient, others.total());
    }
    if (!live || !group_.leads()) return T(0);
    return targets_.finish(i, hot_, state_, largest_ == kNone ? -1 : largest_);
  }

 private:
  __device__ Line line(const ClassTensor& tensor, const Position& position) const {
    // Without a branch around all of it, the compiler knows that this is global memory.
    const int64_t offset = tensor.data ? fused_losses::offset_of(tensors_, tensor.strides, position) : 0;
    return {tensor.data, tensor.dtype, offset, tensor.strides.classes};
  }

  // How many packs of the row are in registers: the others come after them.
  __device__ int beyond() const { return kHeld * group_.lanes(); }

  // How far the last pack of this thread is from the row's last one.
  __device__ int last_lane(int packs) const { return (packs - 1 - group_.lane()) & (group_.lanes() - 1); }

  template <class Body>
  __device__ void for_held(const Body& body) const {
    unrolled<kHeld>([&](int h) { body(h, h * group_.lanes() + group_.lane()); });
  }

  __device__ Held load(const Line& x, int p) const { return Access::load(x, span_, p, static_cast<T>(-INFINITY)); }

  // The logits of a pack, -inf beyond the row.
  __device__ void unpack(int p, const Held& pack, T* x) const {
    Access::unpack(pack, x);
    if constexpr (kTerms) {
      const int first = p * kElements - span_.shift;
      unrolled<kElements>([&](int j) {
        if (span_.has(first + j)) x[j] = targets_.logit(x[j]);
      });
    }
  }

  // The soft targets of a pack, 0 beyond the row.
  __device__ void load_soft(int p, T* q) const {
    const int first = p * kElements - span_.shift;
    T packed[kElements];
    const bool in_packs = t_.data && kernel_.probabilities_packed;
    if (in_packs) Access::unpack(Access::load(t_, span_, p, T(0)), packed);
    unrolled<kElements>([&](int j) {
      const int c = first + j;
      T t = 0;
      if (in_packs) {
        t = packed[j];
      } else if (t_.data && span_.has(c)) {
        t = load_as<T>(t_.data, t_.dtype, t_.offset + c * t_.stride);
      }
      q[j] = span_.has(c) ? targets_.soft(t, c) : T(0);
    });
  }

  __device__ void add(SoftmaxState<T>& state, int p, const Held& pack) {
    const int first = p * kElements - span_.shift;
    T x[kElements];
    unpack(p, pack, x);
    T larger = state.reference;
    unrolled<kElements>([&](int j) { larger = larger_of(x[j], larger); });
    if constexpr (kTerms) {
      if (tensors_.argmax && (larger > state.reference || largest_ == kNone)) {
        unrolled<kElements>([&](int j) {
          const int c = first + kElements - 1 - j;
          if (span_.has(c) && x[kElements - 1 - j] == larger) largest_ = c;
        });
      }
    }
    const T reference = raise<kRounded, kSoft, kTerms>(state, larger);
    T sum = 0, more = 0;
    unrolled<kElements>([&](int j) {
      const T e = numerator<kRounded>(x[j] - reference);
      sum += e;
      if constexpr (kTerms) more += excess(e, x[j] - reference);
    });
    state.sum += sum;
    if constexpr (kTerms) state.excess += more;
    if constexpr (kSoft) {
      T q[kElements], mass = 0, cross = 0;
      load_soft(p, q);
      unrolled<kElements>([&](int j) {
        if (!span_.has(first + j)) return;
        mass += q[j];
        cross += q[j] * (x[j] - reference);
      });
      state.mass += mass;
      state.cross += cross;
    }
  }

  // The sum of the soft targets of a row whose statistics are given.
  __device__ T mass(int packs) const {
    SumOfRuns<T> sum;
    for (int p = group_.lane(); p < packs; p += group_.lanes()) {
      T q[kElements];
      load_soft(p, q);
      unrolled<kElements>([&](int j) { sum.run += q[j]; });
      sum.step();
    }
    return group_.sum(sum.total());
  }

  __device__ void merge(SoftmaxState<T>& state) {
    constexpr int kNumbers = kStateNumbers<kSoft, kTerms>;
    T numbers[kNumbers];
    write_state<kSoft, kTerms>(state, numbers);
    group_.template merge_all<kNumbers>(numbers, [](const T* other, T* own) {
      SoftmaxState<T> merged = read_state<kSoft, kTerms>(own);
      merged.merge(read_state<kSoft, kTerms>(other));
      write_state<kSoft, kTerms>(merged, own);
    });
    const T own_max = state.reference;
    state = read_state<kSoft, kTerms>(numbers);
    if constexpr (kTerms) {
      if (!tensors_.argmax) return;
      if (own_max != state.reference) largest_ = kNone;
      group_.template merge_all<1>(&largest_, [](const int* other, int* own) { *own = std::min(*own, *other); });
    }
  }

  __device__ void emit(const Line& gradient, int p, const Held& pack, SumOfRuns<T>& others) const {
    const int first = p * kElements - span_.shift;
    T x[kElements], q[kElements]{};
    unpack(p, pack, x);
    if constexpr (kSoft) {
      load_soft(p, q);
      if (t_gradient_.data) emit_probabilities(p, x);
    }
    if (!gradient.data) return;
    T made[kElements];
    unrolled<kElements>([&](int j) {
      const T e = numerator<kRounded>(x[j] - slopes_.reference);
      if (!kRounded && first + j != hot_.y) others.run += e;
      made[j] = targets_.gradient(slopes_, hot_, e, x[j], q[j]);
    });
    if constexpr (!kRounded) others.step();
    Access::store(gradient, span_, p, made);
  }

  __device__ void emit_probabilities(int p, const T* x) const {
    const int first = p * kElements - span_.shift;
    T made[kElements];
    unrolled<kElements>([&](int j) {
      const int c = first + j;
      made[j] = 0;
      if (!span_.has(c)) return;
      made[j] = targets_.gradient_of_probability(slopes_, hot_, log_sum_, x[j], c);
      if (!kernel_.probabilities_packed)
        store_as(t_gradient_.data, t_gradient_.dtype, t_gradient_.offset + c * t_gradient_.stride, made[j]);
    });
    if (kernel_.probabilities_packed) Access::store(t_gradient_, span_, p, made);
  }

  __device__ void clear(const Line& gradient, const Span<int>& span) const {
    const T zeros[kElements]{};
    for (int p = group_.lane(); p < span.packs<kElements>(); p += group_.lanes()) {
      Access::store(gradient, span, p, zeros);
    }
  }

  __device__ void finish_label(const Line& gradient, T others) const {
    const T e_y = numerator<kRounded>(hot_.x_y - slopes_.reference);
    others = kRounded ? state_.sum - e_y : group_.sum(others);
    if (!hot_.counts || !gradient.data) return;
    // The thread that has stored the label's pack stores the label's own element.
    if (((static_cast<int>(hot_.y) + span_.shift) / kElements & (group_.lanes() - 1)) != group_.lane()) return;
    store_as(gradient.data, gradient.dtype, gradient.offset + hot_.y * gradient.stride,
             targets_.gradient_at_label(slopes_, state_, hot_, e_y, others));
  }

  const SoftmaxKernel& kernel_;
  const SoftmaxArguments& tensors_;
  const Targets<T, kSoft, kTerms>& targets_;
  const Group& group_;
  Held* const memory_;
  T common_mass_ = 0;
  // What is known of the row in work.
  Line t_, t_gradient_;
  Hot<T> hot_;
  Span<int> span_{};
  SoftmaxState<T> state_;
  Slopes<T> slopes_;
  T log_sum_ = 0;
  int largest_ = kNone;  // the first class with the largest logit
};

template <class Access, bool kSoft, bool kTerms>
__global__ void __launch_bounds__(kMostThreads<typename Access::T, kSoft>, 1)
    softmax_rows_kernel(const __grid_constant__ SoftmaxKernel kernel) {
  using T = typename Access::T;
  FUSED_LOSSES_DYNAMIC_SHARED(memory);
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel);
  const Targets<T, kSoft, kTerms> targets(kernel, upstream, divisor);
  const Group group(kernel.lanes);
  SoftmaxRow<Access, kSoft, kTerms> row(kernel, targets, group, reinterpret_cast<typename Access::Held*>(memory));
  const int64_t step = static_cast<int64_t>(gridDim.x) * group.in_block();
  double sum = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * group.in_block(); first < positions_of(kernel.tensors);
       first += step) {
    sum += row(group.row(first));
  }
  if (kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

template <class Access, bool kSoft, bool kTerms>
void launch_softmax_rows(SoftmaxKernel kernel, const Queue& queue) {
  constexpr int kHeld = kHeldPacks<typename Access::T, kSoft>;
  const SoftmaxArguments& tensors = kernel.tensors;
  const int64_t packs = tensors.classes / Access::kElements + 1;
  // Within a warp, a row gets more threads until each has two packs, so that two loads of a thread overlap. A row for
  // which the registers of a warp are too few gets a block, and shared memory.
  const bool in_warp = packs <= kWarp * kHeld;
  kernel.lanes = in_warp
                     ? lanes_for(packs, 2, kWarp)
                     : std::max(kThreads, lanes_for(packs, kPacksOfThread, kMostThreads<typename Access::T, kSoft>));
  const int threads = std::max(kernel.lanes, kThreads);
  const int64_t in_block = threads / kernel.lanes, rows = tensors.outer * tensors.inner;
  int64_t shared = 0;
  if (!in_warp && !(tensors.backward && tensors.reference)) {
    constexpr int64_t kBytes = sizeof(typename Access::Held);
    const int64_t beyond = std::max<int64_t>(0, packs + 1 - static_cast<int64_t>(kHeld) * kernel.lanes);
    kernel.held_packs = std::min(beyond, queue.shared_bytes / kBytes);
    shared = kernel.held_packs * kBytes;
  }
  launch(softmax_rows_kernel<Access, kSoft, kTerms>, queue,
         blocks_for(queue, (rows + in_block - 1) / in_block, threads), threads, kernel, shared);
}

}  // namespace fused_losses
