// Rows of logits whose classes lie side by side, as threads read and write them: in packs of 128 bits, or element by
// element.
#pragma once

#include "storage.cuh"

namespace fused_losses {

// The same for both elements of 16 bits of two words.
template <class S>
__device__ inline unsigned larger_of_both(unsigned a, unsigned b) {
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
  const TwoFloats x = widened<S>(a), y = widened<S>(b);
  return narrowed<S>(larger_of(x.first, y.first), larger_of(x.second, y.second));
#else
  using Both = std::conditional_t<std::is_same_v<S, BFloat16>, __nv_bfloat162, __half2>;
  return bits_as<unsigned>(__hmax2(bits_as<Both>(a), bits_as<Both>(b)));
#endif
}

// The largest of the logits that are added, by packs or one by one; the smallest, if they are negated.
template <class S, bool kPairs = sizeof(S) == 2>
class Largest {
  using T = Compute<S>;

 public:
  __device__ explicit Largest(bool negated) : sign_(negated ? T(-1) : T(1)) {}

  __device__ void add(T x) { largest_ = larger_of(largest_, x * sign_); }
  __device__ void add(const Pack<S>& pack) {
    T x[kPack<S>];
    unpack(pack, x);
    unrolled<kPack<S>>([&](int j) { add(x[j]); });
  }
  __device__ T value() const { return largest_ * sign_; }

 private:
  T largest_ = static_cast<T>(-INFINITY), sign_;
};

// Two elements of 16 bits at a time.
template <class S>
class Largest<S, true> {
 public:
  __device__ explicit Largest(bool negated) : signs_(negated ? 0x80008000u : 0) {}

  __device__ void add(float x) { add_both(narrowed<S>(x, x) ^ signs_); }
  __device__ void add(const Pack<S>& pack) {
    add_both(larger_of_both<S>(larger_of_both<S>(pack.words[0] ^ signs_, pack.words[1] ^ signs_),
                               larger_of_both<S>(pack.words[2] ^ signs_, pack.words[3] ^ signs_)));
  }
  __device__ float value() const {
    const TwoFloats both = widened<S>(largest_);
    const float larger = larger_of(both.first, both.second);
    return signs_ ? -larger : larger;
  }

 private:
  __device__ void add_both(unsigned words) { largest_ = larger_of_both<S>(largest_, words); }

  unsigned largest_ = narrowed<S>(-INFINITY, -INFINITY), signs_;
};

// A row that is read by packs. Those of its elements that do not fill a pack, before its first pack and after the last
// one, are its edges.
template <class S_>
struct ByPacks {
  using S = S_;
  using Held = Pack<S>;
  static constexpr int kElements = kPack<S>;

  // How many elements of a row lie before its first pack.
  __device__ static int head(const S* row, int64_t classes) {
    return static_cast<int>(
        std::min(classes, static_cast<int64_t>(-(reinterpret_cast<uintptr_t>(row) / sizeof(S)) & (kElements - 1))));
  }
  __device__ static Held load(const void* packs, int p) { return load_pack<S>(packs, p); }
  __device__ static void copy(Held* to, const S* packs, int p) { copy_pack(to, packs + p * int64_t{kElements}); }
  __device__ static void unpack(const Held& held, Compute<S>* x) { fused_losses::unpack(held, x); }
  template <class Largest>
  __device__ static void add(const Held& held, Largest& largest) {
    largest.add(held);
  }
  __device__ static void store(S* packs, int p, const Compute<S>* made) { store_pack(packs, p, packed<S>(made)); }
};

// A row whose elements are packs of one element each.
template <class S_>
struct ByElements {
  using S = S_;
  static constexpr int kElements = 1;
  struct Held {
    S at;
  };

  __device__ static int head(const S*, int64_t) { return 0; }
  __device__ static Held load(const void* row, int c) { return static_cast<const Held*>(row)[c]; }
  __device__ static void copy(Held* to, const S* row, int c) { *to = load(row, c); }
  __device__ static void unpack(const Held& held, Compute<S>* x) { x[0] = static_cast<Compute<S>>(held.at); }
  template <class Largest>
  __device__ static void add(const Held& held, Largest& largest) {
    largest.add(static_cast<Compute<S>>(held.at));
  }
  __device__ static void store(S* row, int c, const Compute<S>* made) { row[c] = static_cast<S>(made[0]); }
};

}  // namespace fused_losses
