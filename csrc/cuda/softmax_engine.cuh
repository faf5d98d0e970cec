// Which kernel runs a softmax; compiled for one storage type in each of the files softmax_*.cu.
//
// Reading order: cross_entropy() in softmax_engine.cu; run_softmax() below; softmax_rows.cuh, where classes lie side by
// side, or softmax_tiles.cuh, where they do not; softmax_targets.cuh, which both ask for labels and soft targets and
// for what follows from them; formulas/cross_entropy.h.
#pragma once

#include "softmax_rows.cuh"
#include "softmax_tiles.cuh"

namespace fused_losses {

template <class Body>
void for_class_tensors(const SoftmaxArguments& tensors, const Body& body) {
  for (const ClassTensor* tensor :
       {&tensors.input, &tensors.input_gradient, &tensors.probabilities, &tensors.probabilities_gradient}) {
    if (tensor->data) body(*tensor);
  }
}

inline void add_rows(Alignment& alignment, const SoftmaxArguments& tensors, const ClassTensor& tensor) {
  int64_t strides[kLoopDims];
  std::copy_n(tensor.strides.outer, tensors.outer_dims, strides);
  strides[tensors.outer_dims] = tensor.strides.inner;
  alignment.add(tensor.data, tensor.dtype, tensor.strides.classes, strides, tensors.outer_dims + 1);
}

// The most classes of packed positions whose results are not rounded to 16 bits. A thread with a pack of positions has
// no registers left for sums of runs; of these classes it has 32 groups, as many as there are in a run.
inline constexpr int64_t kMostPackedClasses = 1024;

// Whether neighbouring positions of input and gradient can be read and written in packs.
template <class S>
bool has_packed_positions(const SoftmaxArguments& tensors) {
  constexpr int64_t kElements = kPack<S>, kMost = sizeof(S) == 2 ? INT32_MAX - 1 : kMostPackedClasses;
  bool packed = tensors.inner % kElements == 0 && tensors.classes <= kMost;
  for (const ClassTensor* tensor : {&tensors.input, &tensors.input_gradient}) {
    if (!tensor->data) continue;
    packed =
        packed && is_aligned(tensor->data) && tensor->strides.inner == 1 && tensor->strides.classes % kElements == 0;
    for (int d = 0; d < tensors.outer_dims; ++d) packed = packed && tensor->strides.outer[d] % kElements == 0;
  }
  return packed;
}

// Chooses the kernel. kSoft and kTerms: see softmax_targets.cuh.
template <class S, bool kSoft, bool kTerms>
void run_softmax(SoftmaxKernel kernel, const Queue& queue) {
  const SoftmaxArguments& tensors = kernel.tensors;
  // The kernel for rows counts classes in 32 bits.
  bool in_rows = tensors.classes < INT32_MAX - kPackBytes;
  for_class_tensors(tensors, [&](const ClassTensor& tensor) { in_rows = in_rows && tensor.strides.classes == 1; });
  if (in_rows) {
    Alignment own(tensors.input.dtype);
    add_rows(own, tensors, tensors.input);
    add_rows(own, tensors, tensors.input_gradient);
    kernel.shift = own.shift();
    if (!own.is_packed()) return launch_softmax_rows<Apart<Compute<S>>, kSoft, kTerms>(kernel, queue);
    add_rows(own, tensors, tensors.probabilities);
    add_rows(own, tensors, tensors.probabilities_gradient);
    kernel.probabilities_packed = own.is_packed();
    return launch_softmax_rows<Packed<S>, kSoft, kTerms>(kernel, queue);
  }
  // A pack of positions for each thread, if that leaves a block of threads to each multiprocessor. Not with soft
  // targets and terms together: what must be known of a pack of positions would not fit into registers.
  if constexpr (!(kSoft && kTerms)) {
    const int64_t threads = tensors.outer * tensors.inner / kPack<S>;
    if (has_packed_positions<S>(tensors) && threads >= static_cast<int64_t>(queue.processors) * kThreads) {
      return launch_softmax_tiles<S, kSoft, kTerms, kPack<S>>(kernel, queue);
    }
  }
  launch_softmax_tiles<S, kSoft, kTerms, 1>(kernel, queue);
}

#define FUSED_LOSSES_INSTANTIATE_SOFTMAX(S)                                \
  template void run_softmax<S, false, false>(SoftmaxKernel, const Queue&); \
  template void run_softmax<S, false, true>(SoftmaxKernel, const Queue&);  \
  template void run_softmax<S, true, false>(SoftmaxKernel, const Queue&);  \
  template void run_softmax<S, true, true>(SoftmaxKernel, const Queue&);

}  // namespace fused_losses
