// Which kernel runs a softmax; compiled for one storage type in each of the files softmax_*.cu.
//
// Reading order: cross_entropy() in softmax_engine.cu; run_softmax() below; softmax_rows.cuh, where classes lie side by
// side, or softmax_tiles.cuh, where they do not; softmax_targets.cuh, which both ask for labels and soft targets and
// for what follows from them; formulas/cross_entropy.h.
#pragma once

#include "softmax_rows.cuh"
#include "softmax_tiles.cuh"

namespace fused_losses {

// Whether classes lie side by side in all tensors that have them, so few that they can be counted in 32 bits, with room
// for what threads read at once.
inline bool has_rows(const SoftmaxArguments& tensors) {
  bool rows = tensors.classes < INT32_MAX - (1 << 14);
  for (const ClassTensor* tensor :
       {&tensors.input, &tensors.input_gradient, &tensors.probabilities, &tensors.probabilities_gradient}) {
    if (tensor->data) rows = rows && tensor->strides.classes == 1;
  }
  return rows;
}

// How the rows of input and gradient can be read in packs: not at all, if rows of the same number do not begin equally
// far from the beginning of one; with edges; or without.
enum class Packing { kNone, kEdges, kWhole };

template <class S>
Packing packing_of(const SoftmaxArguments& tensors) {
  Alignment alignment(tensors.input.dtype);
  bool whole = tensors.classes % kPack<S> == 0;
  for (const ClassTensor* tensor : {&tensors.input, &tensors.input_gradient}) {
    int64_t strides[kLoopDims];
    std::copy_n(tensor->strides.outer, tensors.outer_dims, strides);
    strides[tensors.outer_dims] = tensor->strides.inner;
    alignment.add(tensor->data, tensor->dtype, tensor->strides.classes, strides, tensors.outer_dims + 1);
    if (!tensor->data) continue;
    whole = whole && is_aligned(tensor->data);
    for (int d = 0; d <= tensors.outer_dims; ++d) whole = whole && strides[d] % kPack<S> == 0;
  }
  return !alignment.is_packed() ? Packing::kNone : whole ? Packing::kWhole : Packing::kEdges;
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

template <class S, bool kSoft, bool kTerms>
void run_in_tiles(const SoftmaxKernel& kernel, const Queue& queue) {
  // A pack of positions for each thread, if that leaves a block of threads to each multiprocessor. Not with soft
  // targets and terms together: what must be known of a pack of positions would not fit into registers.
  if constexpr (!(kSoft && kTerms)) {
    const int64_t threads = kernel.tensors.outer * kernel.tensors.inner / kPack<S>;
    if (has_packed_positions<S>(kernel.tensors) && threads >= static_cast<int64_t>(queue.processors) * kThreads) {
      return launch_softmax_tiles<S, kSoft, kTerms, kPack<S>>(kernel, queue);
    }
  }
  launch_softmax_tiles<S, kSoft, kTerms, 1>(kernel, queue);
}

// Chooses the kernel.
template <class S, Soft soft, Terms terms>
void run_softmax(const SoftmaxKernel& kernel, const Queue& queue) {
  const SoftmaxArguments& tensors = kernel.tensors;
  if (has_rows(tensors)) {
    const Packing packing = packing_of<S>(tensors);
    if (packing == Packing::kWhole || (packing == Packing::kEdges && tensors.classes >= kFewestWithEdges<S>)) {
      return launch_softmax_rows<ByPacks<S>, soft, terms>(kernel, queue);
    }
    return launch_softmax_rows<ByElements<S>, soft, terms>(kernel, queue);
  }
  constexpr bool kSoft = soft != Soft::kNone;
  if (terms == Terms::kNone && !tensors.argmax) {
    run_in_tiles<S, kSoft, false>(kernel, queue);
  } else {
    run_in_tiles<S, kSoft, true>(kernel, queue);
  }
}

// Chooses what the kernel is compiled for.
template <class S>
void run_softmax(const SoftmaxKernel& kernel, const Queue& queue) {
  const SoftmaxArguments& tensors = kernel.tensors;
  const SoftmaxTerms& terms = tensors.terms;
  const bool smooth = tensors.label_smoothing != 0;
  const bool maps = terms.entropy != 0 || terms.logit_scale != 1 || terms.softcap != 0;
  if (tensors.probabilities.data || (smooth && (tensors.weight.data || maps))) {
    if (maps) return run_softmax<S, Soft::kAny, Terms::kAny>(kernel, queue);
    return run_softmax<S, Soft::kAny, Terms::kNone>(kernel, queue);
  }
  if (smooth) return run_softmax<S, Soft::kEqual, Terms::kNone>(kernel, queue);
  if (!maps) return run_softmax<S, Soft::kNone, Terms::kNone>(kernel, queue);
  if constexpr (sizeof(S) == 2) {
    if (terms.entropy == 0 && terms.softcap > 0 && terms.softcap <= kMostCap) {
      return run_softmax<S, Soft::kNone, Terms::kCapped>(kernel, queue);
    }
  }
  run_softmax<S, Soft::kNone, Terms::kAny>(kernel, queue);
}

}  // namespace fused_losses
