// Which packs of a row each thread of a group has, and what it keeps of them: those of a warp hold theirs in registers;
// those of a block in shared memory, as far as they fit.
#pragma once

#include "softmax_access.cuh"

namespace fused_losses {

// Packs that a thread of a warp holds: of four registers each, or of one element.
template <class Access, bool kLean>
inline constexpr int kHeldPacks = Access::kElements == 1 ? 16
                                  : kLean                ? 8
                                                         : 4;

// Packs that a thread of a block reads at once: 64 bytes, or 32 of logits where there may be as many of other tensors.
template <bool kLean>
inline constexpr int kPacksAtOnce = kLean ? 4 : 2;

template <class Access, bool kInBlock, bool kLean>
class RowPacks {
 public:
  using S = typename Access::S;
  using Held = typename Access::Held;
  static constexpr int kElements = Access::kElements;
  static constexpr int kHeld = kInBlock ? 1 : kHeldPacks<Access, kLean>;
  static constexpr int kAtOnce = kPacksAtOnce<kLean>;
  template <int count>
  using Count = std::integral_constant<int, count>;

  // `memory` has room for `most` packs.
  __device__ RowPacks(const Group& group, Held* memory, int64_t most)
      : group_(group), memory_(memory), most_(static_cast<int>(most)) {}

  // Takes a row of so many classes; `keeps` says whether it is to be kept in shared memory.
  __device__ void cut(const S* row, int classes, bool keeps) {
    row_ = row;
    head_ = Access::head(row, classes);
    packs_ = (classes - head_) / kElements;
    has_edge_ = group_.lane() < classes - packs_ * kElements;
    edge_class_ = group_.lane() < head_ ? group_.lane() : group_.lane() + packs_ * kElements;
    kept_ = kInBlock ? (keeps ? std::min(packs_, most_) : 0) : packs_;
  }

  // The first class of pack p; whether this thread has one of the row's edges, and its class.
  __device__ int first_class(int p) const { return head_ + p * kElements; }
  __device__ bool has_edge() const { return has_edge_; }
  __device__ int edge_class() const { return edge_class_; }
  __device__ bool keeps_all() const { return kept_ == packs_; }

  // Whether a class is in one of this thread's packs, or its edge.
  __device__ bool has_class(int c) const {
    const int in_packs = c - head_;
    if (in_packs < 0 || in_packs >= packs_ * kElements) return has_edge_ && edge_class_ == c;
    const int p = in_packs / kElements;
    if constexpr (!kInBlock) return (p & (group_.lanes() - 1)) == group_.lane();
    const int in_turn = (p & (kAtOnce * group_.lanes() - 1)) - first_pack();
    return in_turn >= 0 && in_turn < kAtOnce * kWarp && in_turn % kWarp == 0;
  }

  // Begins to read what this thread keeps.
  __device__ void fetch(Held* held) const {
    if constexpr (kInBlock) {
      held[0] = Held();  // not used
      for_packs(0, kept_, [&](auto count, int first) {
        for_each<count>(first, [&](int, int p) { Access::copy(memory_ + p, row_ + head_, p); });
      });
    } else {
      for_each<kHeld>(group_.lane(), [&](int k, int p) { held[k] = Access::load(row_ + head_, p); });
    }
  }

  // Calls body(k, p) for `count` of this thread's packs, the first of which is number `first`: p is that of the k-th.
  template <int count, class Body>
  __device__ void for_each(int first, const Body& body) const {
    unrolled<count>([&](int k) {
      const int p = first + k * (kInBlock ? kWarp : group_.lanes());
      if (kInBlock || p < packs_) body(k, p);
    });
  }

  // Calls pass(count, packs, first) for this thread's packs that it keeps, and for the others. The count is a type,
  // since it is a constant.
  template <class Pass>
  __device__ void for_kept(const Held* held, const Pass& pass) const {
    if constexpr (kInBlock) {
      for_loaded(0, kept_, memory_, pass);
    } else {
      pass(Count<kHeld>(), held, group_.lane());
    }
  }
  template <class Pass>
  __device__ void for_others(const Pass& pass) const {
    if constexpr (kInBlock) for_loaded(kept_, packs_, row_ + head_, pass);
  }
  // The same for all, one by one, without what they hold: calls pass(p).
  template <class Pass>
  __device__ void for_all(const Pass& pass) const {
    for (int p = group_.lane(); p < packs_; p += group_.lanes()) pass(p);
  }

 private:
  template <class From, class Pass>
  __device__ void for_loaded(int begin, int end, const From* from, const Pass& pass) const {
    for_packs(begin, end, [&](auto count, int first) {
      Held packs[count];
      for_each<count>(first, [&](int k, int p) { packs[k] = Access::load(from, p); });
      pass(count, packs, first);
    });
  }

  // Calls pass(count, first) for this thread's packs from number `begin` on, a multiple of what the block has at a
  // time, and before `end`: for kAtOnce of them while there are so many, then one by one.
  template <class Pass>
  __device__ void for_packs(int begin, int end, const Pass& pass) const {
    int p = begin + first_pack();
#pragma unroll 1
    for (; p < end - (kAtOnce - 1) * kWarp; p += kAtOnce * group_.lanes()) pass(Count<kAtOnce>(), p);
#pragma unroll 1
    for (; p < end; p += kWarp) pass(Count<1>(), p);
  }

  // The packs of a block's thread: every kWarp-th one of those that its warp has, kAtOnce of them at a time. So all
  // but the first are a constant distance away.
  __device__ int first_pack() const { return threadIdx.x / kWarp * (kAtOnce * kWarp) + threadIdx.x % kWarp; }

  const Group& group_;
  Held* const memory_;
  const int most_;
  const S* row_ = nullptr;
  int head_ = 0, packs_ = 0, kept_ = 0, edge_class_ = 0;
  bool has_edge_ = false;
};

}  // namespace fused_losses
