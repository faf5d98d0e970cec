// The class margin engine on a GPU for one target in each row, in one pass. Reading order: multi_margin() at the end
// chooses how elements are accessed (lines.cuh), launch_margin() how many threads share a row, and
// multi_margin_kernel() does all the rest.
#include "../formulas/class_margin.h"
#include "class_margin_engine.h"
#include "group.cuh"
#include "lines.cuh"

namespace fused_losses {
namespace {

// A row gets more threads until each has so many packs of it, so that the loads of a thread overlap.
constexpr int kPacks = 4;

// A block of so many leaves 128 of a multiprocessor's 65536 registers to each thread.
constexpr int kMostThreads = 512;

struct Kernel {
  ClassMarginArguments tensors;
  Scaling scaling;
  Reduced reduced;
  int64_t shift;  // of a row at offset 0 (lines.cuh)
  int lanes;      // threads that share a row
};

__device__ Line line_of(const RowTensor& tensor, int64_t row) {
  return {tensor.data, tensor.dtype, row * tensor.row_stride, tensor.class_stride};
}

template <class T>
__device__ T number_at(const RowTensor& tensor, int64_t offset, T absent) {
  return load_or(tensor.data, tensor.dtype, offset, absent);
}

template <class Formula, class Access>
__global__ void __launch_bounds__(kMostThreads, 1) multi_margin_kernel(const __grid_constant__ Kernel kernel) {
  using T = typename Access::T;
  constexpr int kElements = Access::kElements;
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel.scaling);
  const ClassMarginArguments& tensors = kernel.tensors;
  const Formula formula{tensors.margin};
  const Group group(kernel.lanes);
  const int64_t step = static_cast<int64_t>(gridDim.x) * group.in_block();
  double sum = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * group.in_block(); first < tensors.rows; first += step) {
    const bool live = group.row(first) < tensors.rows;
    const int64_t row = live ? group.row(first) : 0;
    const Line x = line_of(tensors.input, row), gradient = line_of(tensors.gradient, row);
    const int64_t y = static_cast<const int64_t*>(tensors.labels.data)[row * tensors.labels.row_stride];
    const bool in_bounds = y >= 0 && y < tensors.classes;
    check(in_bounds, "fused_losses: target is out of bounds");
    const Span<int64_t> span{(kernel.shift + x.offset) & (kElements - 1), live && in_bounds ? tensors.classes : 0};
    const T classes = static_cast<T>(tensors.classes);
    T offset = 0, factor = 0, share = 0;
    if (span.length) {
      offset = formula.offset(load_as<T>(x.data, x.dtype, x.offset + y * x.stride));
      factor = number_at(tensors.weight, y * tensors.weight.class_stride, T(1));
      share = static_cast<T>(upstream / divisor) / classes *
              number_at(tensors.upstream, row * tensors.upstream.row_stride, T(1));
    }
    // The weight counts only where there is a slope, since 0 times an infinite weight would be NaN.
    const auto derivative = [&](T slope) { return slope > 0 ? slope * (share * factor) : share * 0; };
    // If the gradient overwrites the scores, no thread may write an element that another one has yet to read.
    group.sync();

    T value = 0, slopes = 0;
    for (int64_t p = group.lane(); p < span.packs<kElements>(); p += group.lanes()) {
      T scores[kElements];
      Access::unpack(Access::load(x, span, p, T(0)), scores);
      const int64_t begin = p * kElements - span.shift;
      T made[kElements];
      unrolled<kElements>([&](int j) {
        const int64_t c = begin + j;
        const auto terms = formula.terms(scores[j] + offset);
        const bool counts = span.has(c) && c != y;
        value += counts ? terms.value : T(0);
        const T class_slope = counts ? terms.derivative[0] : T(0);
        slopes += class_slope;
        made[j] = derivative(class_slope);
      });
      if (gradient.data) Access::store(gradient, span, p, made);
    }
    T sums[] = {value, slopes};
    group.merge_all<2>(sums, [](const T* other, T* own) {
      own[0] += other[0];
      own[1] += other[1];
    });
    if (!span.length) continue;
    // The thread that has stored the target's pack stores the target's own element.
    if (gradient.data && (y + span.shift) / kElements % group.lanes() == group.lane()) {
      store_as(gradient.data, gradient.dtype, gradient.offset + y * gradient.stride, -derivative(sums[1]));
    }
    if (!group.leads()) continue;
    const T loss = sums[0] != 0 ? sums[0] * factor / classes : sums[0];
    if (tensors.losses.data) store_as(tensors.losses.data, tensors.losses.dtype, row, loss);
    sum += loss;
  }
  if (kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

template <class Formula, class Access>
void launch_margin(Kernel kernel, const Queue& queue) {
  kernel.lanes = lanes_for(kernel.tensors.classes / Access::kElements + 1, kPacks, kMostThreads);
  const int threads = std::max(kernel.lanes, kThreads);
  const int64_t in_block = threads / kernel.lanes;
  launch(multi_margin_kernel<Formula, Access>, queue,
         blocks_for(queue, (kernel.tensors.rows + in_block - 1) / in_block, threads), threads, kernel);
}

}  // namespace

void multi_margin(const ClassMarginArguments& arguments, const Scaling& scaling, const Reduced& reduced,
                  const Queue& queue) {
  const ScalarType dtype = arguments.input.dtype;
  Alignment alignment(dtype);
  for (const RowTensor& tensor : {arguments.input, arguments.gradient}) {
    alignment.add(tensor.data, tensor.dtype, tensor.class_stride, &tensor.row_stride, 1);
  }
  const Kernel kernel{arguments, scaling, reduced, alignment.shift(), 0};
  const auto run = [&](auto formula) {
    using Formula = decltype(formula);
    if (alignment.is_packed()) {
      with_storage(dtype, [&](auto storage) { launch_margin<Formula, Packed<decltype(storage)>>(kernel, queue); });
    } else if (dtype == ScalarType::Double) {
      launch_margin<Formula, Apart<double>>(kernel, queue);
    } else {
      launch_margin<Formula, Apart<float>>(kernel, queue);
    }
  };
  if (arguments.p == 1) {
    run(ClassMargin<1>{});
  } else {
    run(ClassMargin<2>{});
  }
}

}  // namespace fused_losses
