// Rows as kernels walk them: pack by pack where all lie side by side, else element by element.
#pragma once

#include "storage.cuh"

namespace fused_losses {

// Where a row begins, and how far apart its elements are.
struct Line {
  void* data = nullptr;  // null: absent
  ScalarType dtype = ScalarType::Float;
  int64_t offset = 0, stride = 1;
};

// A row's elements, cut where packs begin in memory: `shift` elements of the first pack come before the row.
struct Span {
  int64_t shift, length;

  template <int kElements>
  __device__ int64_t packs() const {
    return (shift + length + kElements - 1) / kElements;
  }
};

// Rows in type S whose elements lie side by side, all with the same shift.
template <class S>
struct Packed {
  using T = Compute<S>;
  using Stored = S;
  using Elements = Pack<S>;
  static constexpr int kElements = kPack<S>;

  // Elements beyond the row's ends are `fill`; they are not read.
  __device__ static Elements load(const Line& line, const Span& span, int64_t p, T fill) {
    const S* const from = static_cast<const S*>(line.data) + (line.offset - span.shift);
    const int64_t first = p * kElements - span.shift;
    if (first >= 0 && first + kElements <= span.length) return load_pack<S>(from, p);
    Elements some;
    for (int j = 0; j < kElements; ++j) {
      some.at[j] = first + j >= 0 && first + j < span.length ? from[p * kElements + j] : static_cast<S>(fill);
    }
    return some;
  }
  __device__ static T element(const Elements& elements, int j) { return static_cast<T>(elements.at[j]); }

  // Elements beyond the row's ends are not written.
  __device__ static void store(const Line& line, const Span& span, int64_t p, const T* values) {
    S* const to = static_cast<S*>(line.data) + (line.offset - span.shift);
    const int64_t first = p * kElements - span.shift;
    Elements pack;
    for (int j = 0; j < kElements; ++j) pack.at[j] = static_cast<S>(values[j]);
    if (first >= 0 && first + kElements <= span.length) {
      store_pack(to, p, pack);
    } else {
      for (int j = 0; j < kElements; ++j) {
        if (first + j >= 0 && first + j < span.length) to[p * kElements + j] = pack.at[j];
      }
    }
  }
};

// Any others: packs of one element, without a shift.
template <class T_>
struct Apart {
  using T = T_;
  using Stored = void;
  struct Elements {
    T at;
  };
  static constexpr int kElements = 1;

  __device__ static Elements load(const Line& line, const Span& span, int64_t p, T fill) {
    return {p < span.length ? load_as<T>(line.data, line.dtype, line.offset + p * line.stride) : fill};
  }
  __device__ static T element(const Elements& elements, int) { return elements.at; }
  __device__ static void store(const Line& line, const Span& span, int64_t p, const T* values) {
    if (p < span.length) store_as(line.data, line.dtype, line.offset + p * line.stride, values[0]);
  }
};

// How many elements lie between the last border of packs and an address.
inline int64_t shift_of(const void* data, size_t element_bytes) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) % kPackBytes / element_bytes);
}

// Whether rows of several tensors can be walked as Packed: all of one type, elements side by side, and all rows with
// the same shift, which for row r is (shift() + where it begins) modulo the pack.
class Alignment {
 public:
  explicit Alignment(ScalarType dtype) : dtype_(dtype) {}

  // Of a tensor, whose rows begin at multiples of these strides.
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
  int64_t strides_[kMaxDims];
};

}  // namespace fused_losses
