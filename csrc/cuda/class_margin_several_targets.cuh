// One row of scores and its list of targets, on a GPU. To be read from operator(), which does a row in chunks that the
// registers of its threads hold.
#pragma once

#include "../formulas/class_margin.h"
#include "class_margin_engine.h"
#include "group.cuh"
#include "rows.cuh"

namespace fused_losses {

// The most targets of a row that are in shared memory at a time. Those of longer lists come in several portions.
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
inline constexpr int kMostListed = 64;  // so few that some lists of the tests do not fit
#else
inline constexpr int kMostListed = 2048;
#endif

// Blocks that a multiprocessor is to hold, which leaves 168 registers to each thread.
inline constexpr int kRowBlocks = 3;

// Classes for each word of the set of targets: one bit for each class.
inline constexpr int kBits = 32;

struct MultilabelMarginKernel {
  ClassMarginArguments tensors;
  Scaling scaling;
  Reduced reduced;
  int64_t shift;  // of a row at offset 0 (lines.cuh)
  int lanes;      // threads that share a row
  int listed;     // targets of a row that are in shared memory at a time
};

// The forward computes the values of losses, and the gradient, if it is wanted; the backward computes the gradient.
template <class Access, bool kForward>
class SeveralTargets {
 public:
  using T = typename Access::T;

  // Elements of a chunk that a thread holds. With their slopes, they take 64 of its registers.
  static constexpr int kHeld = sizeof(T) == sizeof(double) ? 16 : 32;
  static constexpr int kPacks = kHeld / Access::kElements;

  // Bytes of shared memory for each row.
  FUSED_LOSSES_HOST_DEVICE static int bytes(int lanes, int listed) {
    const int bytes = listed * (sizeof(T) + sizeof(unsigned)) + words(lanes) * sizeof(unsigned);
    return (bytes + kPackBytes - 1) / kPackBytes * kPackBytes;
  }

  __device__ SeveralTargets(const MultilabelMarginKernel& kernel, const Group& group, char* memory)
      : kernel_(kernel), tensors_(kernel.tensors), group_(group) {
    memory += threadIdx.x / group.lanes() * bytes(group.lanes(), kernel.listed);
    offsets_ = reinterpret_cast<T*>(memory);
    counts_ = reinterpret_cast<unsigned*>(offsets_ + kernel.listed);
    bits_ = counts_ + kernel.listed;
  }

  // Does a row; returns each thread's part of the loss. Called by all threads of a warp, or of the block where that
  // shares a row; beyond the last row, with one that is not live.
  __device__ T operator()(int64_t row, bool live, T scale) {
    const auto line_of = [&](const RowTensor& tensor) {
      return Line{tensor.data, tensor.dtype, row * tensor.row_stride, tensor.class_stride};
    };
    x_ = line_of(tensors_.input);
    gradient_ = line_of(tensors_.gradient);
    labels_ = static_cast<const int64_t*>(tensors_.labels.data) + row * tensors_.labels.row_stride;
    span_ = {static_cast<Index>((kernel_.shift + x_.offset) & (kElements - 1)),
             live ? static_cast<Index>(tensors_.classes) : 0};
    packs_ = span_.template packs<kElements>();
    const Index step = kPacks * group_.lanes();
    const bool differentiates = !kForward || gradient_.data;
    scale *= load_or(tensors_.upstream.data, tensors_.upstream.dtype, row * tensors_.upstream.row_stride, T(1));
    value_ = 0;

    // The first chunk is on its way before the labels are.
    load(0);
    list();
    const bool at_once = most_ <= kernel_.listed;
    // Chunks of the longest row that there may be, so that all threads of a warp loop equally often.
    const Index end = group_.lanes() < kWarp ? step : packs_;
#pragma unroll 1
    for (Index base = 0; base < end; base += step) {
      if (base > 0) load(base);
      unpack(base);
      for (Index first = 0; first < most_; first += kernel_.listed) {
        if (!at_once) stage(first);
        take_gaps(first);
      }
      if (differentiates) store(base, scale);
    }
    const T value = value_;
    if (differentiates) {
      for (Index first = 0; first < most_; first += kernel_.listed) {
        if (!at_once) {
          stage(first);
#pragma unroll 1
          for (Index base = 0; base < end; base += step) {
            load(base);
            unpack(base);
            take_gaps(first);
          }
        }
        store_targets(first, scale);
      }
    }
    return value / static_cast<T>(tensors_.classes);
  }

 private:
  static constexpr int kElements = Access::kElements;
  static constexpr T kBehind = -static_cast<T>(INFINITY);
  // Rows in packs have fewer than 2^30 elements.
  using Index = std::conditional_t<kElements == 1, int64_t, int>;

  // Words of the set of targets among the classes of a chunk.
  FUSED_LOSSES_HOST_DEVICE static int words(int lanes) { return (lanes * kHeld + kBits - 1) / kBits; }

  __device__ int64_t label(Index k) const { return labels_[k * tensors_.labels.class_stride]; }
  __device__ Index class_of(int64_t label) const {
    const bool in_bounds = label >= 0 && label < tensors_.classes;
    check(in_bounds, "fused_losses: target is out of bounds");
    return in_bounds ? static_cast<Index>(label) : 0;
  }

  // How many targets of a portion are listed.
  __device__ int listed(Index first, Index count) const {
    return static_cast<int>(count - first < kernel_.listed ? count - first : kernel_.listed);
  }

  // Finds where the list ends, and puts the first portion of it into shared memory, and those that are in the first
  // chunk into the set. A few labels are read at a time: the 32 bytes that memory answers with.
  __device__ void list() {
    constexpr int kAtOnce = 4;
    const int width = group_.lanes() < kAtOnce ? group_.lanes() : kAtOnce;
    clear_set(0);
    count_ = span_.length;
    for (Index k = 0, open = 1; k < tensors_.classes && open; k += width) {
      const Index own = k + group_.lane() % width;
      const int64_t y = own < count_ ? label(own) : 0;
      // The first -1 of those that are read now.
      count_ = -greatest<1, kAtOnce>(y == -1 ? -own : -count_, width);
      if (own < count_ && group_.lane() < width) {
        if (own < kernel_.listed) put_offset(static_cast<int>(own), class_of(y));
        put_bit(class_of(y), 0);
      }
      open = in_warp(count_ > k + width ? 1 : 0);
    }
    most_ = in_warp(count_);
    group_.sync();
  }
  // The greatest number of threads whose places differ in the bits from `least` on, below `limit`.
  template <int least, int end>
  __device__ static Index greatest(Index own, int limit) {
#pragma unroll
    for (int distance = least; distance < end; distance *= 2) {
      const Index other = __shfl_xor_sync(0xffffffffu, own, distance);
      if (distance < limit && other > own) own = other;
    }
    return own;
  }
  // The greatest number of any row of the warp.
  __device__ Index in_warp(Index own) const { return group_.lanes() < kWarp ? greatest<1, kWarp>(own, kWarp) : own; }

  // Puts a target of class y into its place of the portion, or into the set of the chunk that begins with pack `base`.
  __device__ void put_offset(int i, Index y) {
    offsets_[i] = ClassMargin<1>{1.0}.offset(load_as<T>(x_.data, x_.dtype, x_.offset + y * x_.stride));
    counts_[i] = 0;
  }
  __device__ void put_bit(Index y, Index base) {
    const Index bit = y + span_.shift - base * kElements;
    if (bit >= 0 && bit < group_.lanes() * kHeld) atomicOr(bits_ + bit / kBits, 1u << bit % kBits);
  }
  __device__ void clear_set(Index base) {
    set_base_ = base;
    group_.sync();  // no thread reads the set any more
    for (int w = group_.lane(); w < words(group_.lanes()); w += group_.lanes()) bits_[w] = 0;
    group_.sync();
  }

  // Puts a portion of the targets into shared memory.
  __device__ void stage(Index first) {
    group_.sync();  // no thread reads the portion before any more
    for (int i = group_.lane(); i < listed(first, count_); i += group_.lanes())
      put_offset(i, class_of(label(first + i)));
    group_.sync();
  }

  // Calls body(h, p) for every pack that this thread holds of the chunk that begins with pack `base`.
  template <class Body>
  __device__ void for_packs(Index base, const Body& body) const {
    unrolled<kPacks>([&](int h) {
      const Index p = base + h * group_.lanes() + group_.lane();
      if (p < packs_) body(h, p);
    });
  }

  // Loads a chunk. Elements beyond a row's ends are behind any target.
  __device__ void load(Index base) {
    for_packs(base, [&](int h, Index p) { held_[h] = Access::load(x_, span_, p, kBehind); });
  }

  // Makes scores of what was loaded. Those of targets, and those beyond the row's end, are behind any target.
  __device__ void unpack(Index base) {
    if (base != set_base_) {
      clear_set(base);
      for (Index k = group_.lane(); k < count_; k += group_.lanes()) put_bit(class_of(label(k)), base);
      group_.sync();
    }
    unrolled<kHeld>([&](int i) {
      scores_[i] = kBehind;
      slopes_[i] = 0;
    });
    for_packs(base, [&](int h, Index p) {
      T* const some = scores_ + h * kElements;
      Access::unpack(held_[h], some);
      const int bit = static_cast<int>(p - base) * kElements;
      const unsigned targets = bits_[bit / kBits] >> bit % kBits & ((1u << kElements) - 1);
      if (targets) unrolled<kElements>([&](int j) { some[j] = targets >> j & 1 ? kBehind : some[j]; });
    });
  }

  // Takes the gaps of the chunk to a portion of the targets into account.
  __device__ void take_gaps(Index first) {
    const int own = listed(first, count_), most = listed(first, most_);
#pragma unroll 1
    for (int k = 0; k < most; ++k) {
      const T offset = k < own ? offsets_[k] : kBehind;
      T count = 0;
      unrolled<kHeld>([&](int i) {
        const T gap = scores_[i] + offset;
        if (gap > 0) {
          const auto terms = ClassMargin<1>::terms(gap);
          if constexpr (kForward) value_ += terms.value;
          slopes_[i] += terms.derivative[0];
          count += terms.derivative[0];
        }
      });
#pragma unroll
      for (int distance = 1; distance < kWarp; distance *= 2) {
        const T other = __shfl_xor_sync(0xffffffffu, count, distance);
        count += distance < group_.lanes() ? other : T(0);
      }
      if (k < own && group_.lane() % kWarp == 0) atomicAdd(counts_ + k, static_cast<unsigned>(count));
    }
  }

  // Writes the gradient of a chunk. That of targets is written again.
  __device__ void store(Index base, T scale) const {
    for_packs(base, [&](int h, Index p) {
      T made[kElements];
      unrolled<kElements>([&](int j) { made[j] = slopes_[h * kElements + j] * scale; });
      Access::store(gradient_, span_, p, made);
    });
  }

  // Writes the gradient of each target of a portion: minus the sum of its slopes, times how often it is listed.
  __device__ void store_targets(Index first, T scale) const {
    group_.sync();  // all have counted, and have stored the gradient of classes
    for (int i = group_.lane(); i < listed(first, count_); i += group_.lanes()) {
      const int64_t y = label(first + i);
      int64_t times = 0;
      for (Index k = 0; k < count_; ++k) times += label(k) == y;
      const T slopes = static_cast<T>(counts_[i]) * static_cast<T>(times);
      store_as(gradient_.data, gradient_.dtype, gradient_.offset + class_of(y) * gradient_.stride, -slopes * scale);
    }
  }

  const MultilabelMarginKernel& kernel_;
  const ClassMarginArguments& tensors_;
  const Group& group_;
  T* offsets_;        // margin - score of each target of a portion
  unsigned* counts_;  // positive gaps of each
  unsigned* bits_;    // which classes of the chunk are targets
  Line x_, gradient_;
  const int64_t* labels_ = nullptr;
  Span<Index> span_{};
  Index packs_ = 0, set_base_ = 0;
  Index count_ = 0, most_ = 0;  // targets of this row, and of the row of the warp that has most
  typename Access::Held held_[kPacks];
  T scores_[kHeld], slopes_[kHeld];
  T value_ = 0;
};

}  // namespace fused_losses
