// The engine of the negative log-likelihood on a GPU, whose input holds log-probabilities already. The gradient is 0
// but for one element of each position. Reading order: nll() at the end chooses the kernel: nll_rows_kernel() where
// classes lie side by side, nll_tiles_kernel() where positions do; pick() is what both do for a position.
#include "labels.cuh"

namespace fused_losses {
namespace {

// A row gets more threads until each has so many packs of zeros to store.
constexpr int kPacks = 4;

// A position: its class, -1 if it is ignored; its loss; and the gradient at its class.
template <class T>
struct Picked {
  int64_t y;
  T value, slope;
};

template <class T>
__device__ Picked<T> pick(const SoftmaxArguments& tensors, const Position& position, T scale) {
  const int64_t y = label_of(tensors, position);
  if (y < 0) return {-1, T(0), T(0)};
  const T weight = number_at(tensors.weight, y * tensors.weight.strides.classes, T(1));
  const T upstream = number_at(
      tensors.upstream, tensors.upstream.data ? offset_of(tensors, tensors.upstream.strides, position) : 0, T(1));
  T value = 0;
  if (!tensors.backward) {
    const ClassTensor& x = tensors.input;
    value = -weight * number_at(x, offset_of(tensors, x.strides, position) + y * x.strides.classes, T(0));
  }
  return {y, value, -weight * scale * upstream};
}

// Classes side by side: a group of threads for each row.
template <class Access>
__global__ void __launch_bounds__(kThreads) nll_rows_kernel(const __grid_constant__ SoftmaxKernel kernel) {
  using T = typename Access::T;
  constexpr int kElements = Access::kElements;
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel);
  const SoftmaxArguments& tensors = kernel.tensors;
  const Group group(kernel.lanes);
  double sum = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * group.in_block(); first < positions_of(tensors);
       first += static_cast<int64_t>(gridDim.x) * group.in_block()) {
    const int64_t i = group.row(first);
    const bool live = i < positions_of(tensors);
    const Position position = live ? position_of(tensors, i) : Position{0, 0};
    Picked<T> picked{-1, T(0), T(0)};
    if (live) picked = pick(tensors, position, static_cast<T>(upstream / divisor));
    // If the gradient overwrites the input, no thread may write an element that another one has yet to read.
    group.sync();
    if (live && group.leads()) {
      if (tensors.losses.data) store_as(tensors.losses.data, tensors.losses.dtype, i, picked.value);
      sum += picked.value;
    }
    const ClassTensor& to = tensors.input_gradient;
    if (!live || !to.data) continue;
    const Line gradient{to.data, to.dtype, offset_of(tensors, to.strides, position), to.strides.classes};
    const Span<int64_t> span{(kernel.shift + gradient.offset) & (kElements - 1), tensors.classes};
    for (int64_t p = group.lane(); p < span.packs<kElements>(); p += group.lanes()) {
      T made[kElements];
      unrolled<kElements>([&](int j) { made[j] = p * kElements - span.shift + j == picked.y ? picked.slope : T(0); });
      Access::store(gradient, span, p, made);
    }
  }
  if (kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

// Positions side by side: a thread for each.
template <class T>
__global__ void __launch_bounds__(kThreads) nll_tiles_kernel(const __grid_constant__ SoftmaxKernel kernel) {
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel);
  const SoftmaxArguments& tensors = kernel.tensors;
  double sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < positions_of(tensors);
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const Position position = position_of(tensors, i);
    const Picked<T> picked = pick(tensors, position, static_cast<T>(upstream / divisor));
    if (tensors.losses.data) store_as(tensors.losses.data, tensors.losses.dtype, i, picked.value);
    sum += picked.value;
    const ClassTensor& to = tensors.input_gradient;
    if (!to.data) continue;
    const int64_t offset = offset_of(tensors, to.strides, position);
    for (int64_t c = 0; c < tensors.classes; ++c) {
      store_as(to.data, to.dtype, offset + c * to.strides.classes, c == picked.y ? picked.slope : T(0));
    }
  }
  if (kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

template <class Access>
void launch_rows(SoftmaxKernel kernel, const Queue& queue) {
  const SoftmaxArguments& tensors = kernel.tensors;
  const bool writes = tensors.input_gradient.data;
  kernel.lanes = writes ? lanes_for(tensors.classes / Access::kElements + 1, kPacks, kThreads) : 1;
  const int64_t in_block = kThreads / kernel.lanes, rows = tensors.outer * tensors.inner;
  launch(nll_rows_kernel<Access>, queue, blocks_for(queue, (rows + in_block - 1) / in_block, kThreads), kThreads,
         kernel);
}

}  // namespace

void nll(const SoftmaxArguments& arguments, const Scaling& scaling, LabelDivisor divisor, const Reduced& reduced,
         const Queue& queue) {
  SoftmaxKernel kernel{arguments, scaling, divisor, reduced};
  const ClassTensor& gradient = arguments.input_gradient;
  with_storage(arguments.input.dtype, [&](auto storage) {
    using S = decltype(storage);
    if (!gradient.data || gradient.strides.classes == 1) {
      kernel.shift = shift_of(gradient.data, sizeof(S));
      return launch_rows<Packed<S>>(kernel, queue);
    }
    const int64_t tiles = (arguments.outer * arguments.inner + kThreads - 1) / kThreads;
    launch(nll_tiles_kernel<Compute<S>>, queue, blocks_for(queue, tiles, kThreads), kThreads, kernel);
  });
}

}  // namespace fused_losses
