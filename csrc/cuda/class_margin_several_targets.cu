// The class margin engine on a GPU for a list of targets in each row. A warp or a block takes a row, in chunks that its
// registers hold: the gaps of a chunk to a target make the loss, the slopes of classes, and the count of gaps that are
// positive, which is the slope of the target. Reading order: multilabel_margin() at the end chooses how rows are
// accessed (lines.cuh, rows.cuh), launch_rows() how many threads share a row, multilabel_margin_kernel() gives rows to
// groups of threads, and OneRow does one.
#include "../formulas/class_margin.h"
#include "class_margin_engine.h"
#include "group.cuh"
#include "rows.cuh"

namespace fused_losses {
namespace {

// Packs of a chunk that a thread holds. With their slopes, elements of 16 bits take 64 of its 128 registers.
constexpr int kPacks = 4;

// The most targets of a row that are in shared memory at a time. Those of longer lists come in several portions.
constexpr int kListed = 2048;

// Labels that are read at a time, to find where a list ends: the 32 bytes that memory answers with.
constexpr int kLabels = 4;

// Classes for each word of the set of targets: one bit for each class.
constexpr int kBits = 32;

using Formula = ClassMargin<1>;

struct Kernel {
  ClassMarginArguments tensors;
  Scaling scaling;
  Reduced reduced;
  int64_t shift;  // of a row at offset 0 (lines.cuh)
  int lanes;      // threads that share a row: a warp or a block
  int listed;     // targets of a row that are in shared memory at a time
};

// Words of the set of targets among the classes of a chunk.
template <class Access>
constexpr int words_of(int lanes) {
  return lanes * kPacks * Access::kElements / kBits;
}

// Bytes of shared memory for a row.
template <class Access>
constexpr int bytes_of(int lanes, int listed) {
  const int bytes =
      listed * (sizeof(typename Access::T) + sizeof(unsigned)) + words_of<Access>(lanes) * sizeof(unsigned);
  return (bytes + kPackBytes - 1) / kPackBytes * kPackBytes;
}

// The forward computes the values of losses, and the gradient, if it is wanted; the backward computes the gradient.
template <class Access, bool kForward>
class OneRow {
 public:
  using T = typename Access::T;

  __device__ OneRow(const Kernel& kernel, const Group& group, char* memory)
      : kernel_(kernel), tensors_(kernel.tensors), group_(group) {
    memory += threadIdx.x / group.lanes() * bytes_of<Access>(group.lanes(), kernel.listed);
    offsets_ = reinterpret_cast<T*>(memory);
    counts_ = reinterpret_cast<unsigned*>(offsets_ + kernel.listed);
    bits_ = counts_ + kernel.listed;
  }

  // Called by all threads of the group; returns each thread's part of the loss.
  __device__ T operator()(int64_t row, T scale) {
    const auto line_of = [&](const RowTensor& tensor) {
      return Line{tensor.data, tensor.dtype, row * tensor.row_stride, tensor.class_stride};
    };
    x_ = line_of(tensors_.input);
    gradient_ = line_of(tensors_.gradient);
    labels_ = static_cast<const int64_t*>(tensors_.labels.data) + row * tensors_.labels.row_stride;
    span_ = {static_cast<Index>((kernel_.shift + x_.offset) & (kElements - 1)), static_cast<Index>(tensors_.classes)};
    packs_ = span_.template packs<kElements>();
    scale *= load_or(tensors_.upstream.data, tensors_.upstream.dtype, row * tensors_.upstream.row_stride, T(1));
    value_ = 0;

    // The first chunk is on its way before the labels are.
    load(0);
    find_end();
    stage(0);
    const bool at_once = count_ <= kernel_.listed;
    const bool differentiates = !kForward || gradient_.data;
    for_chunks([&](Index base) {
      for (int64_t first = 0; first < count_; first += kernel_.listed) {
        if (!at_once) stage(first);
        take_gaps(first);
      }
      if (differentiates) store(base, scale);
    });
    const T value = value_;
    if (differentiates) {
      for (int64_t first = 0; first < count_; first += kernel_.listed) {
        if (!at_once) {
          stage(first);
          load(0);
          for_chunks([&](Index) { take_gaps(first); });
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

  __device__ int64_t label(int64_t k) const { return labels_[k * tensors_.labels.class_stride]; }
  __device__ Index target(int64_t k) const {
    const int64_t y = label(k);
    const bool in_bounds = y >= 0 && y < tensors_.classes;
    check(in_bounds, "fused_losses: target is out of bounds");
    return in_bounds ? static_cast<Index>(y) : 0;
  }

  // How many targets of a portion are listed.
  __device__ int listed(int64_t first) const {
    const int64_t left = count_ - first;
    return left < kernel_.listed ? static_cast<int>(left) : kernel_.listed;
  }

  // Counts the labels before the first -1.
  __device__ void find_end() {
    count_ = tensors_.classes;
    for (int64_t k = 0; k < tensors_.classes; k += kLabels) {
      const int64_t own = k + threadIdx.x % kLabels;
      int64_t end = own < tensors_.classes && label(own) == -1 ? own : tensors_.classes;
      unrolled<2>([&](int step) {
        const int64_t other = __shfl_xor_sync(0xffffffffu, end, 1 << step);
        end = other < end ? other : end;
      });
      if (end < tensors_.classes) {
        count_ = end;
        return;
      }
    }
  }

  // Puts a portion of the targets into shared memory.
  __device__ void stage(int64_t first) {
    group_.sync();  // no thread reads the portion before any more
    for (int k = group_.lane(); k < listed(first); k += group_.lanes()) {
      offsets_[k] = Formula{1.0}.offset(load_as<T>(x_.data, x_.dtype, x_.offset + target(first + k) * x_.stride));
      counts_[k] = 0;
    }
    group_.sync();
  }

  // Calls body(h, p) for every pack that this thread holds of the chunk that begins with pack `base`.
  template <class Body>
  __device__ void for_packs(Index base, const Body& body) const {
    unrolled<kPacks>([&](int h) {
      const Index p = base + h * group_.lanes() + group_.lane();
      body(h, p);
    });
  }

  // Calls body(base) for all chunks, of which the first has been loaded.
  template <class Body>
  __device__ void for_chunks(const Body& body) {
    const Index step = kPacks * group_.lanes();
#pragma unroll 1
    for (Index base = 0; base < packs_; base += step) {
      if (base > 0) load(base);
      unpack(base);
      body(base);
    }
  }

  // Loads a chunk. Elements beyond a row's ends are behind any target.
  __device__ void load(Index base) {
    for_packs(base, [&](int h, Index p) {
      if (p < packs_) held_[h] = Access::load(x_, span_, p, kBehind);
    });
  }

  // Makes scores of what was loaded. Those of targets, and those beyond the row's end, are behind any target.
  __device__ void unpack(Index base) {
    const int words = words_of<Access>(group_.lanes());
    const Index begin = base * kElements - span_.shift, end = begin + words * kBits;
    group_.sync();  // no thread reads the bits of the chunk before any more
    for (int w = group_.lane(); w < words; w += group_.lanes()) bits_[w] = 0;
    group_.sync();
    for (int64_t k = group_.lane(); k < count_; k += group_.lanes()) {
      const Index y = target(k);
      if (y >= begin && y < end) {
        const int bit = static_cast<int>(y - begin);
        atomicOr(bits_ + bit / kBits, 1u << bit % kBits);
      }
    }
    group_.sync();
    for_packs(base, [&](int h, Index p) {
      T* const some = scores_ + h * kElements;
      unrolled<kElements>([&](int j) { some[j] = kBehind; });
      if (p < packs_) {
        Access::unpack(held_[h], some);
        const int bit = static_cast<int>(p - base) * kElements;
        const unsigned targets = bits_[bit / kBits] >> bit % kBits & ((1u << kElements) - 1);
        if (targets) {
          unrolled<kElements>([&](int j) { some[j] = targets >> j & 1 ? kBehind : some[j]; });
        }
      }
      unrolled<kElements>([&](int j) { slopes_[h * kElements + j] = 0; });
    });
  }

  // Takes the gaps of the chunk to a portion of the targets into account.
  __device__ void take_gaps(int64_t first) {
    const int listed = this->listed(first);
#pragma unroll 1
    for (int k = 0; k < listed; ++k) {
      const T offset = offsets_[k];
      unsigned count = 0;
      unrolled<kPacks * kElements>([&](int i) {
        const T gap = scores_[i] + offset;
        if (gap > 0) {
          const auto terms = Formula::terms(gap);
          if constexpr (kForward) value_ += terms.value;
          slopes_[i] += terms.derivative[0];
          ++count;
        }
      });
      count = sum_of_warp(count);
      if (threadIdx.x % kWarp == 0) atomicAdd(counts_ + k, count);
    }
  }

  // Writes the gradient of a chunk. That of targets is written again.
  __device__ void store(Index base, T scale) const {
    for_packs(base, [&](int h, Index p) {
      T made[kElements];
      unrolled<kElements>([&](int j) { made[j] = slopes_[h * kElements + j] * scale; });
      if (p < packs_) Access::store(gradient_, span_, p, made);
    });
  }

  // Writes the gradient of each target of a portion: minus the sum of its slopes, times how often it is listed.
  __device__ void store_targets(int64_t first, T scale) const {
    group_.sync();  // all have counted, and have stored the gradient of classes
    for (int k = group_.lane(); k < listed(first); k += group_.lanes()) {
      const Index y = target(first + k);
      int64_t times = 0;
      for (int64_t other = 0; other < count_; ++other) times += label(other) == y;
      const T slopes = static_cast<T>(counts_[k]) * static_cast<T>(times);
      store_as(gradient_.data, gradient_.dtype, gradient_.offset + y * gradient_.stride, -slopes * scale);
    }
  }

  const Kernel& kernel_;
  const ClassMarginArguments& tensors_;
  const Group& group_;
  T* offsets_;        // margin - score of each target of a portion
  unsigned* counts_;  // positive gaps of each
  unsigned* bits_;    // which classes of the chunk are targets
  Line x_, gradient_;
  const int64_t* labels_ = nullptr;
  Span<Index> span_{};
  Index packs_ = 0;
  int64_t count_ = 0;  // targets of the row
  typename Access::Held held_[kPacks];
  T scores_[kPacks * kElements], slopes_[kPacks * kElements];
  T value_ = 0;
};

template <class Access, bool kForward>
__global__ void __launch_bounds__(kThreads, kBlocks) multilabel_margin_kernel(const __grid_constant__ Kernel kernel) {
  using T = typename Access::T;
  FUSED_LOSSES_DYNAMIC_SHARED(memory);
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel.scaling);
  const T scale = static_cast<T>(upstream / divisor) / static_cast<T>(kernel.tensors.classes);
  const Group group(kernel.lanes);
  const int64_t step = static_cast<int64_t>(gridDim.x) * group.in_block();
  OneRow<Access, kForward> one_row(kernel, group, memory);
  double sum = 0;
#pragma unroll 1
  for (int64_t row = group.row(static_cast<int64_t>(blockIdx.x) * group.in_block()); row < kernel.tensors.rows;
       row += step) {
    T value = one_row(row, scale);
    if constexpr (kForward) {
      value = group.sum(value);
      const Result& losses = kernel.tensors.losses;
      if (group.leads() && losses.data) store_as(losses.data, losses.dtype, row, value);
      if (group.leads()) sum += value;
    }
  }
  if (kForward && kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

template <class Access>
void launch_rows(Kernel kernel, const Queue& queue) {
  const int64_t classes = kernel.tensors.classes;
  kernel.lanes = most_packs<Access>(classes) <= kPacks * kWarp ? kWarp : kThreads;
  kernel.listed = static_cast<int>(std::min<int64_t>(classes, kListed));
  const int in_block = kThreads / kernel.lanes;
  const int blocks = row_blocks((kernel.tensors.rows + in_block - 1) / in_block, kBlocks);
  const int64_t shared_bytes = in_block * bytes_of<Access>(kernel.lanes, kernel.listed);
  if (kernel.reduced.loss || kernel.tensors.losses.data) {
    launch(multilabel_margin_kernel<Access, true>, queue, blocks, kThreads, kernel, shared_bytes);
  } else {
    launch(multilabel_margin_kernel<Access, false>, queue, blocks, kThreads, kernel, shared_bytes);
  }
}

}  // namespace

bool fits_on_chip(const ClassMarginArguments& arguments) { return arguments.classes <= kListed; }

void multilabel_margin(const ClassMarginArguments& arguments, const Scaling& scaling, const Reduced& reduced,
                       const Queue& queue) {
  const ScalarType dtype = arguments.input.dtype;
  Alignment alignment(dtype);
  for (const RowTensor& tensor : {arguments.input, arguments.gradient}) {
    alignment.add(tensor.data, tensor.dtype, tensor.class_stride, &tensor.row_stride, 1);
  }
  const Kernel kernel{arguments, scaling, reduced, alignment.shift(), 0, 0};
  if (!alignment.is_packed() || arguments.classes >= int64_t{1} << 30) {
    if (dtype == ScalarType::Double) return launch_rows<Apart<double>>(kernel, queue);
    return launch_rows<Apart<float>>(kernel, queue);
  }
  with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    if (are_whole(alignment, dtype, arguments.classes, &arguments.input.row_stride, 1)) {
      launch_rows<Whole<S>>(kernel, queue);
    } else {
      launch_rows<Packed<S>>(kernel, queue);
    }
  });
}

}  // namespace fused_losses
