// Rows as kernels walk them: pack by pack (Packed) where elements lie side by side, else element by element (Apart).
// A row may begin anywhere: its first and last packs may be incomplete.
#pragma once

#include "storage.cuh"

namespace fused_losses {

// A row in memory: where it begins, and how far apart its elements are, both in elements.
struct Line {
  void* data = nullptr;  // null: absent
  ScalarType dtype = ScalarType::Float;
  int64_t offset = 0, stride = 1;
};

// A row of `length` elements, cut where packs begin in memory: the first `shift` elements of its first pack lie before
// it.
template <class Index>
struct Span {
  Index shift, length;

  template <int kElements>
  __device__ Index packs() const {
    return (shift + length + (kElements - 1)) / kElements;
  }
  // Whether all elements of a pack that begins with element `first` belong to the row, or its j-th one.
  template <int kElements>
  __device__ bool has_pack(Index first) const {
    return first >= 0 && first + kElements <= length;
  }
  __device__ bool has(Index element) const { return element >= 0 && element < length; }
};

// Access to rows of type S whose elements lie side by side. All rows that are walked together have the same shift.
template <class S>
struct Packed {
  using T = Compute<S>;
  using Held = Pack<S>;
  static constexpr int kElements = kPack<S>;
  static constexpr bool kRounded = sizeof(S) == 2;

  // Elements beyond the row's ends are `fill`; they are not read.
  template <class Index>
  __device__ static Held load(const Line& line, const Span<Index>& span, Index p, T fill) {
    const S* const from = static_cast<const S*>(line.data) + (line.offset - span.shift);
    const Index first = p * kElements - span.shift;
    if (span.template has_pack<kElements>(first)) return load_pack<S>(from, p);
    Elements<S> some;
    unrolled<kElements>([&](int j) {
      some.at[j] = span.has(first + j) ? from[static_cast<int64_t>(p) * kElements + j] : static_cast<S>(fill);
    });
    return Held(some);
  }
  // A held pack's elements.
  __device__ static void unpack(const Held& held, T* elements) {
    const Elements<S> some = held.elements();
    unrolled<kElements>([&](int j) { elements[j] = static_cast<T>(some.at[j]); });
  }

  // Elements beyond the row's ends are not written.
  template <class Index>
  __device__ static void store(const Line& line, const Span<Index>& span, Index p, const T* values) {
    S* const to = static_cast<S*>(line.data) + (line.offset - span.shift);
    const Index first = p * kElements - span.shift;
    Elements<S> some;
    unrolled<kElements>([&](int j) { some.at[j] = static_cast<S>(values[j]); });
    if (span.template has_pack<kElements>(first)) return store_pack(to, p, Held(some));
    unrolled<kElements>([&](int j) {
      if (span.has(first + j)) to[static_cast<int64_t>(p) * kElements + j] = some.at[j];
    });
  }
};

// Any others: packs of one element, without a shift.
template <class T_>
struct Apart {
  using T = T_;
  struct Held {
    T at;
    __device__ void forget() {}
  };
  static constexpr int kElements = 1;
  static constexpr bool kRounded = false;

  template <class Index>
  __device__ static Held load(const Line& line, const Span<Index>& span, Index p, T fill) {
    return {span.has(p) ? load_as<T>(line.data, line.dtype, line.offset + p * line.stride) : fill};
  }
  __device__ static void unpack(const Held& held, T* elements) { elements[0] = held.at; }
  template <class Index>
  __device__ static void store(const Line& line, const Span<Index>& span, Index p, const T* values) {
    if (span.has(p)) store_as(line.data, line.dtype, line.offset + p * line.stride, values[0]);
  }
};

// How many elements lie between an address and the beginning of its pack.
inline int64_t shift_of(const void* data, size_t element_bytes) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) % kPackBytes / element_bytes);
}

// Whether the rows of several tensors can be walked as Packed: all are of one dtype, elements lie side by side, and the
// rows of the same number have the same shift, which is (shift() + offset of the row) modulo the elements of a pack.
class Alignment {
 public:
  explicit Alignment(ScalarType dtype) : dtype_(dtype) {}

  // Adds a tensor, whose rows begin at multiples of these `dims` strides. An absent one is passed over.
  void add(const void* data, ScalarType dtype, int64_t stride, const int64_t* row_strides, int dims) {
    if (!data) return;
    const size_t bytes = with_storage(dtype, [](auto s) { return sizeof(s); });
    good_ = good_ && dtype == dtype_ && stride == 1 && reinterpret_cast<uintptr_t>(data) % bytes == 0;
    if (!good_) return;
    const int64_t pack = kPackBytes / bytes, shift = shift_of(data, bytes);
    if (first_) {
      shift_ = shift;
      std::copy_n(row_strides, dims, strides_);
      first_ = false;
    }
    good_ = shift == shift_;
    for (int d = 0; good_ && d < dims; ++d) good_ = (row_strides[d] - strides_[d]) % pack == 0;
  }

  bool is_packed() const { return good_; }
  int64_t shift() const { return shift_; }

 private:
  ScalarType dtype_;
  bool good_ = true, first_ = true;
  int64_t shift_ = 0;
  int64_t strides_[kLoopDims];
};

}  // namespace fused_losses
