// The class margin engine on a GPU for a list of targets in each row: the gaps of all classes to a target make the
// loss, the slopes of the classes, and the count of those that are positive, which is the slope of the target. Reading
// order: multilabel_margin() at the end chooses how rows are accessed (lines.cuh, rows.cuh), launch_rows() how many
// threads share a row, multilabel_margin_kernel() gives rows to them, and SeveralTargets does one.
#include "class_margin_several_targets.cuh"

namespace fused_losses {
namespace {

template <class Access, bool kForward>
__global__ void __launch_bounds__(kThreads, kRowBlocks)
    multilabel_margin_kernel(const __grid_constant__ MultilabelMarginKernel kernel) {
  using T = typename Access::T;
  FUSED_LOSSES_DYNAMIC_SHARED(memory);
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel.scaling);
  const T scale = static_cast<T>(upstream / divisor) / static_cast<T>(kernel.tensors.classes);
  const Group group(kernel.lanes);
  const int64_t step = static_cast<int64_t>(gridDim.x) * group.in_block();
  SeveralTargets<Access, kForward> targets(kernel, group, memory);
  double sum = 0;
#pragma unroll 1
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * group.in_block(); first < kernel.tensors.rows;
       first += step) {
    const bool live = group.row(first) < kernel.tensors.rows;
    const int64_t row = live ? group.row(first) : 0;
    T value = targets(row, live, scale);
    if constexpr (kForward) {
      value = group.sum(value);
      if (!live || !group.leads()) continue;
      const Result& losses = kernel.tensors.losses;
      if (losses.data) store_as(losses.data, losses.dtype, row, value);
      sum += value;
    }
  }
  if (kForward && kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

template <class Access>
void launch_rows(MultilabelMarginKernel kernel, const Queue& queue) {
  const auto launch_kernel = [&](auto forward) {
    using Targets = SeveralTargets<Access, forward>;
    kernel.lanes = lanes_for(most_packs<Access>(kernel.tensors.classes), Targets::kPacks, kThreads);
    kernel.listed = static_cast<int>(std::min<int64_t>(kernel.tensors.classes, kMostListed));
    const int in_block = kThreads / kernel.lanes;
    launch(multilabel_margin_kernel<Access, forward>, queue,
           row_blocks((kernel.tensors.rows + in_block - 1) / in_block, kRowBlocks), kThreads, kernel,
           in_block * Targets::bytes(kernel.lanes, kernel.listed));
  };
  if (kernel.reduced.loss || kernel.tensors.losses.data) {
    launch_kernel(std::true_type{});
  } else {
    launch_kernel(std::false_type{});
  }
}

}  // namespace

bool fits_on_chip(const ClassMarginArguments& arguments) { return arguments.classes <= kMostListed; }

void multilabel_margin(const ClassMarginArguments& arguments, const Scaling& scaling, const Reduced& reduced,
                       const Queue& queue) {
  const ScalarType dtype = arguments.input.dtype;
  Alignment alignment(dtype);
  for (const RowTensor& tensor : {arguments.input, arguments.gradient}) {
    alignment.add(tensor.data, tensor.dtype, tensor.class_stride, &tensor.row_stride, 1);
  }
  const MultilabelMarginKernel kernel{arguments, scaling, reduced, alignment.shift(), 0, 0};
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
