// Softmax over classes that lie side by side: some threads of a warp for each row, which hold it in registers, or a
// block, which holds as much of it as fits in shared memory. Each thread reads, keeps and writes packs of its own.
//
// Reading order: launch_softmax_rows() at the end chooses how many threads share a row; softmax_rows_kernel() gives
// rows to groups; softmax_row.cuh does one of them.
#pragma once

#include "softmax_row.cuh"

namespace fused_losses {

// A row that a block shares gets more threads until each has so many packs of it, but at most kMostThreads: so what is
// done once in a row is a small part of a thread's instructions. Few threads do for a row, since all of it is on its
// way at once, and since packs do not wait for each other.
inline constexpr int kPacksOfThread = 32;
template <bool kLean>
inline constexpr int kMostThreads = kLean ? 512 : 256;

// What the assembler is told of threads and resident blocks, of which registers for each thread follow: 128 for those
// of a warp. For those of a block 80, with which three blocks of 256 are resident. Twice as many or more, where there
// is more to know.
template <bool kLean, bool kInBlock>
inline constexpr int kBoundThreads = !kInBlock ? kThreads
                                     : kLean   ? 768
                                               : kMostThreads<kLean>;
template <bool kLean, bool kInBlock>
inline constexpr int kBoundBlocks = !kInBlock ? (kLean ? kBlocks : kBlocks / 2) : 1;

template <class Access, Soft soft, Terms terms, bool kInBlock>
__global__ void __launch_bounds__(kBoundThreads<kIsLean<Compute<typename Access::S>, soft, terms>, kInBlock>,
                                  kBoundBlocks<kIsLean<Compute<typename Access::S>, soft, terms>, kInBlock>)
    softmax_rows_kernel(const __grid_constant__ SoftmaxKernel kernel) {
  using Row = SoftmaxRow<Access, soft, terms, kInBlock>;
  FUSED_LOSSES_DYNAMIC_SHARED(memory);
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel);
  const typename Row::RowTargets targets(kernel, upstream, divisor);
  const Group group(kInBlock ? blockDim.x : kernel.lanes);
  Row row(kernel, targets, group, reinterpret_cast<typename Access::Held*>(memory));
  const int64_t step = static_cast<int64_t>(gridDim.x) * group.in_block();
  double sum = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * group.in_block(); first < positions_of(kernel.tensors);
       first += step) {
    sum += row(group.row(first));
  }
  if (kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

// The fewest lanes of rows with edges, since each has one of them: less than two packs.
template <class S>
inline constexpr int kLanesWithEdges = 2 * kPack<S>;
// The fewest classes of such rows. Shorter ones are read by elements.
template <class S>
inline constexpr int kFewestWithEdges = kLanesWithEdges<S> * kPack<S>;

template <class Access, Soft soft, Terms terms>
void launch_softmax_rows(SoftmaxKernel kernel, const Queue& queue) {
  using Held = typename Access::Held;
  constexpr bool kLean = kIsLean<Compute<typename Access::S>, soft, terms>;
  constexpr int kElements = Access::kElements, kHeld = kHeldPacks<Access, kLean>;
  const SoftmaxArguments& tensors = kernel.tensors;
  const int64_t packs = (tensors.classes + kElements - 1) / kElements, rows = tensors.outer * tensors.inner;
  const auto blocks = [](int64_t needed) { return static_cast<int>(std::clamp<int64_t>(needed, 1, kSoftmaxBlocks)); };
  if (packs <= kWarp * kHeld) {
    kernel.lanes = lanes_for(packs, kHeld, kWarp);
    if (kElements > 1 && tensors.classes >= kFewestWithEdges<typename Access::S>)
      kernel.lanes = std::max(kernel.lanes, kLanesWithEdges<typename Access::S>);
    const int64_t in_block = kThreads / kernel.lanes;
    return launch(softmax_rows_kernel<Access, soft, terms, false>, queue, blocks((rows + in_block - 1) / in_block),
                  kThreads, kernel);
  }
  int threads = kWarp;
  while (threads < kMostThreads<kLean> && threads * kPacksOfThread < packs) threads *= 2;
  kernel.lanes = threads;
  int64_t shared = 0;
  if (!(tensors.backward && tensors.reference)) {
    // The packs that do not fit begin with a multiple of what the block reads at a time.
    const int64_t at_once = threads * kPacksAtOnce<kLean>, most = queue.shared_bytes / sizeof(Held) / at_once * at_once;
    kernel.held_packs = std::min(packs, most);
    shared = kernel.held_packs * sizeof(Held);
  }
  launch(softmax_rows_kernel<Access, soft, terms, true>, queue, blocks(rows), threads, kernel, shared);
}

}  // namespace fused_losses
