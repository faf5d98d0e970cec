// The engine of the negative log-likelihood on a GPU, whose input holds log-probabilities already. The gradient is 0
// but for one element of each position. Reading order: nll() at the end chooses the kernel: nll_rows_kernel() where
// classes lie side by side, nll_tiles_kernel() where positions do; pick() is what both do for a position.
#include "labels.cuh"
#include "softmax_access.cuh"

namespace fused_losses {
namespace {

// A row gets more threads until each has so many packs of zeros to store: a quarter of the instructions that it takes
// to find out what the label's element is.
constexpr int kPacks = 16;

// A position: its class, -1 if it is ignored; its loss; and the gradient at its class.
template <class T>
struct Picked {
  int64_t y;
  T value, slope;
};

template <class S, class T>
__device__ Picked<T> pick(const SoftmaxArguments& tensors, const Position& position, T scale) {
  const int64_t y = label_of(tensors, position);
  if (y < 0) return {-1, T(0), T(0)};
  const T weight = number_at(tensors.weight, y * tensors.weight.strides.classes, T(1));
  const T upstream = number_at(
      tensors.upstream, tensors.upstream.data ? offset_of(tensors, tensors.upstream.strides, position) : 0, T(1));
  T value = 0;
  if (!tensors.backward) {
    const ClassTensor& x = tensors.input;
    value =
        -weight *
        static_cast<T>(static_cast<const S*>(x.data)[offset_of(tensors, x.strides, position) + y * x.strides.classes]);
  }
  return {y, value, -weight * scale * upstream};
}

// Writes a row of zeros, but for one element: each thread of a group stores packs, and edges (softmax_access.cuh), of
// its own.
template <class S, class T>
__device__ void store_one_hot(S* row, int64_t classes, int64_t y, T value, const Group& group) {
  constexpr int kElements = kPack<S>;
  const int64_t head = ByPacks<S>::head(row, classes), packs = (classes - head) / kElements;
  const Pack<S> zeros(Elements<S>{});
  for (int64_t p = group.lane(); p < packs; p += group.lanes()) store_pack(row + head, p, zeros);
  for (int64_t c = group.lane(); c < classes - packs * kElements; c += group.lanes()) {
    row[c < head ? c : c + packs * kElements] = static_cast<S>(T(0));
  }
  // No other thread's zero may come after the element.
  group.sync();
  if (y >= 0 && group.leads()) row[y] = static_cast<S>(value);
}

// Classes side by side: a group of threads for each row.
template <class S>
__global__ void __launch_bounds__(kThreads) nll_rows_kernel(const __grid_constant__ SoftmaxKernel kernel) {
  using T = Compute<S>;
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel);
  const T scale = static_cast<T>(upstream / divisor);
  const SoftmaxArguments& tensors = kernel.tensors;
  const Group group(kernel.lanes);
  double sum = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * group.in_block(); first < positions_of(tensors);
       first += static_cast<int64_t>(gridDim.x) * group.in_block()) {
    const int64_t i = group.row(first);
    const bool live = i < positions_of(tensors);
    const Position position = live ? position_of(tensors, i) : Position{0, 0};
    Picked<T> picked{-1, T(0), T(0)};
    if (live) picked = pick<S>(tensors, position, scale);
    if (live && group.leads()) {
      if (tensors.losses.data) store_as(tensors.losses.data, tensors.losses.dtype, i, picked.value);
      sum += picked.value;
    }
    // If the gradient overwrites the input, no thread may write an element that another one has yet to read.
    group.sync();
    const ClassTensor& to = tensors.input_gradient;
    if (to.data) {
      S* const row = static_cast<S*>(to.data) + offset_of(tensors, to.strides, position);
      store_one_hot(row, live ? tensors.classes : 0, picked.y, picked.slope, group);
    }
  }
  if (kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

// Positions side by side: a thread for each.
template <class S>
__global__ void __launch_bounds__(kThreads) nll_tiles_kernel(const __grid_constant__ SoftmaxKernel kernel) {
  using T = Compute<S>;
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel);
  const T scale = static_cast<T>(upstream / divisor);
  const SoftmaxArguments& tensors = kernel.tensors;
  double sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < positions_of(tensors);
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const Position position = position_of(tensors, i);
    const Picked<T> picked = pick<S>(tensors, position, scale);
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

template <class S>
void launch_rows(SoftmaxKernel kernel, const Queue& queue) {
  const SoftmaxArguments& tensors = kernel.tensors;
  kernel.lanes = tensors.input_gradient.data ? lanes_for(tensors.classes / kPack<S>, kPacks, kThreads) : 1;
  const int64_t in_block = kThreads / kernel.lanes, rows = tensors.outer * tensors.inner;
  launch(nll_rows_kernel<S>, queue, blocks_for(queue, (rows + in_block - 1) / in_block, kThreads), kThreads, kernel);
}

}  // namespace

void nll(const SoftmaxArguments& arguments, const Scaling& scaling, LabelDivisor divisor, const Reduced& reduced,
         const Queue& queue) {
  SoftmaxKernel kernel{arguments, scaling, divisor, reduced};
  const ClassTensor& gradient = arguments.input_gradient;
  with_storage(arguments.input.dtype, [&](auto storage) {
    using S = decltype(storage);
    if (!gradient.data || gradient.strides.classes == 1) return launch_rows<S>(kernel, queue);
    const int64_t tiles = (arguments.outer * arguments.inner + kThreads - 1) / kThreads;
    launch(nll_tiles_kernel<S>, queue, blocks_for(queue, tiles, kThreads), kThreads, kernel);
  });
}

}  // namespace fused_losses
