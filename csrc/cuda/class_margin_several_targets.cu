// The class margin engine on a GPU for a list of targets in each row: a block for each row. The gaps of all classes to
// all targets are computed twice: class by class, for the loss and the slopes of the classes, and target by target, for
// those of the targets. Reading order: multilabel_margin() at the end, multilabel_margin_kernel(), and Row, which does
// one row.
#include "../formulas/class_margin.h"
#include "class_margin_engine.h"
#include "group.cuh"

namespace fused_losses {
namespace {

// Bytes of shared memory for a row: the 48 KiB that every GPU gives a kernel whose limit was not raised, less what
// groups need.
constexpr int64_t kOnChip = 40 << 10;

// Classes for each word of the set of targets: one bit for each class.
constexpr int kBits = 32;

using Formula = ClassMargin<1>;

struct Kernel {
  ClassMarginArguments tensors;
  Scaling scaling;
  Reduced reduced;
  bool on_chip;  // whether scores and the set of targets are in shared memory
};

template <class T>
class Row {
 public:
  __device__ Row(const Kernel& kernel, char* memory)
      : tensors_(kernel.tensors),
        on_chip_(kernel.on_chip),
        scores_(reinterpret_cast<T*>(memory)),
        bits_(reinterpret_cast<unsigned*>(scores_ + (on_chip_ ? tensors_.classes : 0))) {}

  // Called by all threads of the block; returns each thread's part of the loss.
  __device__ T operator()(int64_t row, T scale) {
    row_ = row;
    count_ = count_of_targets();
    if (on_chip_) stage();
    if (tensors_.upstream.data) {
      scale *= load_as<T>(tensors_.upstream.data, tensors_.upstream.dtype, row * tensors_.upstream.row_stride);
    }
    T value = 0;
    for (int64_t c = threadIdx.x; c < tensors_.classes; c += blockDim.x) {
      T slope = 0;
      if (!is_target(c)) {
        const T x = score(c);
        for (int64_t k = 0; k < count_; ++k) {
          const auto terms = Formula::terms(offset(k) + x);
          value += terms.value;
          slope += terms.derivative[0];
        }
      }
      // The element of a target is written again below.
      if (tensors_.gradient.data) store(c, slope * scale);
    }
    if (tensors_.gradient.data) differentiate_targets(scale);
    return value / static_cast<T>(tensors_.classes);
  }

 private:
  __device__ int64_t label(int64_t k) const {
    return static_cast<const int64_t*>(
        tensors_.labels.data)[row_ * tensors_.labels.row_stride + k * tensors_.labels.class_stride];
  }
  __device__ int64_t target(int64_t k) const {
    const int64_t y = label(k);
    const bool in_bounds = y >= 0 && y < tensors_.classes;
    check(in_bounds, "fused_losses: target is out of bounds");
    return in_bounds ? y : 0;
  }
  __device__ T read(int64_t c) const {
    const RowTensor& x = tensors_.input;
    return load_as<T>(x.data, x.dtype, row_ * x.row_stride + c * x.class_stride);
  }
  __device__ T score(int64_t c) const { return on_chip_ ? scores_[c] : read(c); }
  __device__ T offset(int64_t k) const { return Formula{1.0}.offset(score(target(k))); }
  __device__ void store(int64_t c, T value) const {
    const RowTensor& to = tensors_.gradient;
    store_as(to.data, to.dtype, row_ * to.row_stride + c * to.class_stride, value);
  }

  // How many labels come before the first -1.
  __device__ int64_t count_of_targets() const {
    int64_t count = tensors_.classes;
    for (int64_t k = threadIdx.x; k < count; k += blockDim.x) {
      if (label(k) == -1) count = k;
    }
    Group(blockDim.x).merge_all<1>(&count, [](const int64_t* other, int64_t* own) {
      if (*other < *own) *own = *other;
    });
    return count;
  }

  __device__ void stage() const {
    for (int64_t c = threadIdx.x; c < tensors_.classes; c += blockDim.x) scores_[c] = read(c);
    for (int64_t w = threadIdx.x; w * kBits < tensors_.classes; w += blockDim.x) bits_[w] = 0;
    __syncthreads();
    for (int64_t k = threadIdx.x; k < count_; k += blockDim.x) {
      const int64_t y = target(k);
      atomicOr(bits_ + y / kBits, 1u << y % kBits);
    }
    __syncthreads();
  }

  __device__ bool is_target(int64_t c) const {
    if (on_chip_) return bits_[c / kBits] >> c % kBits & 1;
    for (int64_t k = 0; k < count_; ++k) {
      if (target(k) == c) return true;
    }
    return false;
  }

  // Writes the gradient of each target: minus the sum of all slopes, times how often it is listed.
  __device__ void differentiate_targets(T scale) const {
    // Elements of targets were stored before, by other threads.
    __syncthreads();
    for (int64_t k = 0; k < count_; ++k) {
      const int64_t y = target(k);
      T slopes = 0;
      for (int64_t c = threadIdx.x; c < tensors_.classes; c += blockDim.x) {
        if (!is_target(c)) slopes += Formula::terms(offset(k) + score(c)).derivative[0];
      }
      int64_t listed = 0;
      for (int64_t other = threadIdx.x; other < count_; other += blockDim.x) listed += target(other) == y;
      T sums[] = {slopes, static_cast<T>(listed)};
      Group(blockDim.x).merge_all<2>(sums, [](const T* other, T* own) {
        own[0] += other[0];
        own[1] += other[1];
      });
      if (threadIdx.x == 0) store(y, -sums[0] * sums[1] * scale);
    }
  }

  const ClassMarginArguments& tensors_;
  const bool on_chip_;
  T* const scores_;
  unsigned* const bits_;
  int64_t row_ = 0, count_ = 0;
};

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) multilabel_margin_kernel(const __grid_constant__ Kernel kernel) {
  FUSED_LOSSES_DYNAMIC_SHARED(memory);
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel.scaling);
  const T scale = static_cast<T>(upstream / divisor) / static_cast<T>(kernel.tensors.classes);
  Row<T> one_row(kernel, memory);
  double sum = 0;
  for (int64_t row = blockIdx.x; row < kernel.tensors.rows; row += gridDim.x) {
    const T value = Group(blockDim.x).sum(one_row(row, scale));
    if (threadIdx.x == 0) {
      const Result& losses = kernel.tensors.losses;
      if (losses.data) store_as(losses.data, losses.dtype, row, value);
      sum += value;
    }
    __syncthreads();  // the row's shared memory may be overwritten
  }
  if (kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

int64_t bytes_on_chip(const ClassMarginArguments& arguments) {
  const int64_t score = arguments.input.dtype == ScalarType::Double ? sizeof(double) : sizeof(float);
  return arguments.classes * score + (arguments.classes + kBits - 1) / kBits * sizeof(unsigned);
}

}  // namespace

bool fits_on_chip(const ClassMarginArguments& arguments) { return bytes_on_chip(arguments) <= kOnChip; }

void multilabel_margin(const ClassMarginArguments& arguments, const Scaling& scaling, const Reduced& reduced,
                       const Queue& queue) {
  const bool on_chip = fits_on_chip(arguments);
  const Kernel kernel{arguments, scaling, reduced, on_chip};
  void (*const run)(Kernel) =
      arguments.input.dtype == ScalarType::Double ? multilabel_margin_kernel<double> : multilabel_margin_kernel<float>;
  launch(run, queue, blocks_for(queue, arguments.rows, kThreads), kThreads, kernel,
         on_chip ? bytes_on_chip(arguments) : 0);
}

}  // namespace fused_losses
