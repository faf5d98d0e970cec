// Softmax over classes that do not lie side by side, as in images (N, C, H, W): each thread has one position or a pack
// of neighbouring ones, and walks their classes twice, the second time from caches. The positions of a warp are a tile,
// and several warps may share its classes.
//
// Reading order: launch_softmax_tiles() at the end chooses how many warps share a tile; softmax_tiles_kernel() gives
// tiles to warps; SoftmaxTile does the positions of a thread: add_up() is the first pass, merge() joins the warps of a
// tile, emit() is the second pass, finish_labels() the elements at the labels.
#pragma once

#include <limits>

#include "softmax_targets.cuh"

namespace fused_losses {

// Classes that are looked at together. Each group takes an exponential besides those of its classes, which brings what
// came before to a larger reference: a quarter more. Larger groups would need more registers for their logits.
inline constexpr int kClassesAtOnce = 4;

// The most classes that are read three times rather than twice: those of the tiles that are in work on a GPU lie in
// caches, 1 MB for each class on an H100.
inline constexpr int64_t kFewClasses = 32;

// P neighbouring positions for each thread: a pack, or one.
template <class S, bool kSoft, bool kTerms, int P>
class SoftmaxTile {
  using T = Compute<S>;
  static constexpr bool kRounded = sizeof(S) == 2;
  static constexpr int kNumbers = kStateNumbers<kSoft, kTerms>;
  // Classes are counted in 32 bits for packs of positions, for which many of these numbers are kept.
  using Class = std::conditional_t<P == 1, int64_t, int>;
  static constexpr Class kNone = std::numeric_limits<Class>::max();  // a class after all others
  // Packs of positions have few classes: see kMostPackedClasses.
  static constexpr bool kRuns = P == 1;
  static constexpr bool kLargestFirst = kRounded && P > 1 && !kSoft && !kTerms;

 public:
  __device__ SoftmaxTile(const SoftmaxKernel& kernel, const Targets<T, kSoft, kTerms>& targets)
      : kernel_(kernel), tensors_(kernel.tensors), targets_(targets), part_(threadIdx.x / kWarp % kernel.parts) {
    if (kSoft && !tensors_.probabilities.data) common_mass_ = targets.mass_of_smoothing();
  }

  // Writes the results of this thread's positions, from number `begin` on; returns the sum of their losses to one of
  // the threads that share them, and 0 to others. Called by all threads of the block.
  __device__ T operator()(int64_t begin) {
    const int64_t positions = positions_of(tensors_);
    const bool live = begin < positions;  // P divides their number
    const Position first = live ? position_of(tensors_, begin) : Position{0, 0};
    bool any = false;
    unrolled<P>([&](int j) {
      hot_[j] = targets_.hot({first.outer, first.inner + j}, live);
      any |= hot_[j].counts;
    });
    // If the gradient overwrites the logits, no thread may write an element that another one has yet to read.
    __syncthreads();
    x_ = offset(tensors_.input, first);
    t_ = offset(tensors_.probabilities, first);

    SoftmaxState<T> states[P];
    unrolled<P>([&](int j) { largest_[j] = kNone; });
    if (targets_.given()) {
      unrolled<P>([&](int j) {
        if (hot_[j].counts) states[j] = targets_.read(begin + j);
      });
      if (kSoft && tensors_.probabilities.data) add_up_mass(states);
    } else {
      if (any) add_up(states);
      merge(states);
    }
    unrolled<P>([&](int j) {
      if (kSoft && !tensors_.probabilities.data) states[j].mass = common_mass_;
      slopes_[j] = targets_.slopes(states[j], hot_[j]);
    });
    if (live && (tensors_.input_gradient.data || tensors_.probabilities_gradient.data)) {
      emit(states, offset(tensors_.input_gradient, first), offset(tensors_.probabilities_gradient, first));
    }
    if (tensors_.input_gradient.data && tensors_.labels.data) {
      finish_labels(states, live ? offset(tensors_.input_gradient, first) : 0);
    }
    if (!live || part_ != 0) return 0;
    T total = 0;
    unrolled<P>([&](int j) {
      const bool has_largest = hot_[j].counts && largest_[j] != kNone;
      total += targets_.finish(begin + j, hot_[j], states[j], has_largest ? largest_[j] : -1);
    });
    return total;
  }

 private:
  __device__ int64_t offset(const ClassTensor& tensor, const Position& position) const {
    return tensor.data ? fused_losses::offset_of(tensors_, tensor.strides, position) : 0;
  }

  // Loads class c of the thread's positions; and below, stores it.
  __device__ static void load(const ClassTensor& tensor, int64_t offset, int64_t c, T* x) {
    const S* const from = static_cast<const S*>(tensor.data) + offset + c * tensor.strides.classes;
    if constexpr (P == 1) {
      x[0] = static_cast<T>(*from);
    } else {
      unpack(load_pack<S>(from, 0), x);
    }
  }
  __device__ static void store(const ClassTensor& tensor, int64_t offset, int64_t c, const T* values) {
    S* const to = static_cast<S*>(tensor.data) + offset + c * tensor.strides.classes;
    if constexpr (P == 1) {
      *to = static_cast<S>(values[0]);
    } else {
      store_pack(to, 0, packed<S>(values));
    }
  }

  __device__ void load_logits(int64_t c, T* x) const {
    load(tensors_.input, x_, c, x);
    unrolled<P>([&](int j) { x[j] = targets_.logit(x[j]); });
  }

  __device__ void load_soft(int64_t c, T* q) const {
    const ClassTensor& t = tensors_.probabilities;
    unrolled<P>([&](int j) {
      const int64_t at = t_ + c * t.strides.classes + j * t.strides.inner;
      q[j] = targets_.soft(number_at(t, at, T(0)), c);
    });
  }

  // Calls body(c) for the first class c of each group of kClassesAtOnce that this thread has.
  template <class Body>
  __device__ void for_classes(const Body& body) const {
    const int64_t step = static_cast<int64_t>(kernel_.parts) * kClassesAtOnce;
    for (int64_t c = static_cast<int64_t>(part_) * kClassesAtOnce; c < tensors_.classes; c += step) body(c);
  }

  __device__ void add_up(SoftmaxState<T>* states) {
    if constexpr (kLargestFirst) {
      if (tensors_.classes <= kFewClasses) return add_up_few(states);
    }
    if constexpr (kRuns) {
      SoftmaxRuns<T> runs{states[0]};
      for_classes([&](int64_t first) {
        add(&runs.run, first);
        runs.step();
      });
      states[0] = runs.total();
    } else {
      for_classes([&](int64_t first) { add(states, first); });
    }
  }

  // The same for few classes, which are read once more, from a cache: first for the largest logits, two elements at a
  // time, then for the sums.
  __device__ void add_up_few(SoftmaxState<T>* states) const {
    const S* const from = static_cast<const S*>(tensors_.input.data) + x_;
    unsigned largest[Pack<S>::kWords];
    unrolled<Pack<S>::kWords>([&](int w) { largest[w] = narrowed<S>(-INFINITY, -INFINITY); });
    for_classes([&](int64_t first) {
      Pack<S> packs[kClassesAtOnce];
      unrolled<kClassesAtOnce>([&](int k) {
        // A class that does not exist counts as the group's first one.
        const int64_t c = first + k < tensors_.classes ? first + k : first;
        packs[k] = load_pack<S>(from + c * tensors_.input.strides.classes, 0);
      });
      unrolled<kClassesAtOnce>([&](int k) {
        unrolled<Pack<S>::kWords>([&](int w) { largest[w] = larger_of_both<S>(largest[w], packs[k].words[w]); });
      });
    });
    T references[P];
    unrolled<Pack<S>::kWords>([&](int w) {
      const TwoFloats both = widened<S>(largest[w]);
      states[2 * w].reference = both.first;
      states[2 * w + 1].reference = both.second;
    });
    unrolled<P>([&](int j) { references[j] = finite_reference(states[j].reference); });
    for_classes([&](int64_t first) {
      unrolled<kClassesAtOnce>([&](int k) {
        if (first + k >= tensors_.classes) return;
        T x[P];
        unpack(load_pack<S>(from + (first + k) * tensors_.input.strides.classes, 0), x);
        unrolled<P>([&](int j) { states[j].sum += numerator<kRounded>(x[j] - references[j]); });
      });
    });
  }

  // Adds the group of classes that begins with `first`.
  __device__ void add(SoftmaxState<T>* states, int64_t first) {
    T x[kClassesAtOnce][P];
    unrolled<kClassesAtOnce>([&](int k) {
      unrolled<P>([&](int j) { x[k][j] = static_cast<T>(-INFINITY); });
      if (first + k < tensors_.classes) load_logits(first + k, x[k]);
    });
    unrolled<P>([&](int j) {
      SoftmaxState<T>& state = states[j];
      T larger = state.reference;
      unrolled<kClassesAtOnce>([&](int k) { larger = larger_of(x[k][j], larger); });
      if constexpr (kTerms) {
        if (tensors_.argmax && (larger > state.reference || largest_[j] == kNone)) {
          unrolled<kClassesAtOnce>([&](int k) {
            const int64_t c = first + kClassesAtOnce - 1 - k;
            if (c < tensors_.classes && x[kClassesAtOnce - 1 - k][j] == larger) largest_[j] = static_cast<Class>(c);
          });
        }
      }
      const T reference = raise<kRounded, kSoft, kTerms>(state, larger);
      T sum = 0, more = 0;
      unrolled<kClassesAtOnce>([&](int k) {
        const T e = numerator<kRounded>(x[k][j] - reference);
        sum += e;
        if constexpr (kTerms) more += excess(e, x[k][j] - reference);
      });
      state.sum += sum;
      if constexpr (kTerms) state.excess += more;
    });
    if constexpr (kSoft) {
      T mass[P]{}, cross[P]{};
      unrolled<kClassesAtOnce>([&](int k) {
        if (first + k >= tensors_.classes) return;
        T q[P];
        load_soft(first + k, q);
        unrolled<P>([&](int j) {
          mass[j] += q[j];
          cross[j] += q[j] * (x[k][j] - finite_reference(states[j].reference));
        });
      });
      unrolled<P>([&](int j) {
        states[j].mass += mass[j];
        states[j].cross += cross[j];
      });
    }
  }

  // The sums of the soft targets of positions whose statistics are given.
  __device__ void add_up_mass(SoftmaxState<T>* states) const {
    SumOfRuns<T> mass[P];
    for_classes([&](int64_t first) {
      unrolled<kClassesAtOnce>([&](int k) {
        if (first + k >= tensors_.classes) return;
        T q[P];
        load_soft(first + k, q);
        unrolled<P>([&](int j) { mass[j].run += q[j]; });
      });
      if constexpr (kRuns) unrolled<P>([&](int j) { mass[j].step(); });
    });
    T totals[P];
    unrolled<P>([&](int j) { totals[j] = mass[j].total(); });
    sum_of_parts(totals);
    unrolled<P>([&](int j) { states[j].mass = totals[j]; });
  }

  // Adds up what the warps that share the tile have found. Before it is called again, all threads must have met.
  __device__ void sum_of_parts(T* values) const {
    FUSED_LOSSES_SHARED(T, found, kThreads * P);
    unrolled<P>([&](int j) { found[threadIdx.x * P + j] = values[j]; });
    __syncthreads();
    unrolled<P>([&](int j) {
      values[j] = 0;
      for (int part = 0; part < kernel_.parts; ++part) values[j] += found[thread_of(part) * P + j];
    });
  }

  // Merges what the warps that share the tile have found, in their order.
  __device__ void merge(SoftmaxState<T>* states) {
    if (kernel_.parts == 1) return;
    FUSED_LOSSES_SHARED(T, found, kThreads * P * kNumbers);
    __syncthreads();  // no thread reads the states of an earlier call any more
    unrolled<P>([&](int j) { write_state<kSoft, kTerms>(states[j], found + (threadIdx.x * P + j) * kNumbers); });
    __syncthreads();
    unrolled<P>([&](int j) {
      states[j] = {};
      for (int part = 0; part < kernel_.parts; ++part) {
        states[j].merge(read_state<kSoft, kTerms>(found + (thread_of(part) * P + j) * kNumbers));
      }
    });
    if constexpr (kTerms) {
      if (tensors_.argmax) merge_largest(states, found);
    }
  }

  __device__ void merge_largest(const SoftmaxState<T>* states, const T* found) {
    FUSED_LOSSES_SHARED(Class, classes, kThreads * P);
    unrolled<P>([&](int j) { classes[threadIdx.x * P + j] = largest_[j]; });
    __syncthreads();
    unrolled<P>([&](int j) {
      largest_[j] = kNone;
      for (int part = 0; part < kernel_.parts; ++part) {
        const int other = thread_of(part) * P + j;
        if (found[other * kNumbers] == states[j].reference && classes[other] < largest_[j])
          largest_[j] = classes[other];
      }
    });
  }

  // The thread that has the same positions in another part.
  __device__ int thread_of(int part) const { return static_cast<int>(threadIdx.x) + (part - part_) * kWarp; }

  __device__ void emit(const SoftmaxState<T>* states, int64_t gradient, int64_t t_gradient) {
    SumOfRuns<T> others[P];
    for_classes([&](int64_t first) {
      unrolled<kClassesAtOnce>([&](int k) {
        if (first + k >= tensors_.classes) return;
        const int64_t c = first + k;
        T x[P], q[P]{}, made[P];
        load_logits(c, x);
        if constexpr (kSoft) {
          load_soft(c, q);
          if (tensors_.probabilities_gradient.data) emit_probabilities(states, c, x, t_gradient);
        }
        if (!tensors_.input_gradient.data) return;
        unrolled<P>([&](int j) {
          const T e = numerator<kRounded>(x[j] - slopes_[j].reference);
          if (!kRounded && c != hot_[j].y) others[j].run += e;
          made[j] = targets_.gradient(slopes_[j], hot_[j], e, x[j], q[j]);
          if (!hot_[j].counts) made[j] = 0;
        });
        store(tensors_.input_gradient, gradient, c, made);
      });
      if constexpr (kRuns && !kRounded) unrolled<P>([&](int j) { others[j].step(); });
    });
    unrolled<P>([&](int j) { others_[j] = others[j].total(); });
  }

  __device__ void emit_probabilities(const SoftmaxState<T>* states, int64_t c, const T* x, int64_t t_gradient) const {
    const ClassTensor& to = tensors_.probabilities_gradient;
    unrolled<P>([&](int j) {
      store_as(to.data, to.dtype, t_gradient + c * to.strides.classes + j * to.strides.inner,
               targets_.gradient_of_probability(slopes_[j], hot_[j], log(states[j].sum), x[j], c));
    });
  }

  __device__ void finish_labels(const SoftmaxState<T>* states, int64_t gradient) const {
    T e_y[P], others[P];
    unrolled<P>([&](int j) { e_y[j] = numerator<kRounded>(hot_[j].x_y - slopes_[j].reference); });
    if constexpr (kRounded) {
      unrolled<P>([&](int j) { others[j] = states[j].sum - e_y[j]; });
    } else {
      unrolled<P>([&](int j) { others[j] = others_[j]; });
      sum_of_parts(others);
    }
    // All elements must have been written before those at the labels are written again; and no thread may read the sums
    // of sum_of_parts any more.
    __syncthreads();
    if (part_ != 0) return;
    unrolled<P>([&](int j) {
      const Hot<T>& hot = hot_[j];
      if (!hot.counts) return;
      const T slope = targets_.gradient_at_label(slopes_[j], states[j], hot, e_y[j], others[j]);
      const ClassTensor& to = tensors_.input_gradient;
      static_cast<S*>(to.data)[gradient + hot.y * to.strides.classes + j * to.strides.inner] = static_cast<S>(slope);
    });
  }

  const SoftmaxKernel& kernel_;
  const SoftmaxArguments& tensors_;
  const Targets<T, kSoft, kTerms>& targets_;
  const int part_;
  T common_mass_ = 0;
  // What is known of the positions in work.
  Hot<T> hot_[P];
  Slopes<T> slopes_[P];
  Class largest_[P];  // the first class with the largest logit
  T others_[P] = {};
  int64_t x_ = 0, t_ = 0;
};

// How many blocks a multiprocessor is to hold. Packs of positions, and soft targets in float64, need more registers
// than kBlocks leave: half as many blocks leave twice as many.
template <class S, bool kSoft, int P>
inline constexpr int kTileBlocks = P == 1 && !(kSoft && sizeof(S) == sizeof(double)) ? kBlocks : kBlocks / 2;

template <class S, bool kSoft, bool kTerms, int P>
__global__ void __launch_bounds__(kThreads, kTileBlocks<S, kSoft, P>)
    softmax_tiles_kernel(const __grid_constant__ SoftmaxKernel kernel) {
  using T = Compute<S>;
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel);
  const Targets<T, kSoft, kTerms> targets(kernel, upstream, divisor);
  SoftmaxTile<S, kSoft, kTerms, P> tile(kernel, targets);
  const int in_block = kThreads / kernel.parts * P;
  const int own = (threadIdx.x / (kWarp * kernel.parts) * kWarp + threadIdx.x % kWarp) * P;
  const int64_t positions = positions_of(kernel.tensors);
  double sum = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * in_block; first < positions;
       first += static_cast<int64_t>(gridDim.x) * in_block) {
    sum += tile(first + own);
  }
  if (kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

template <class S, bool kSoft, bool kTerms, int P>
void launch_softmax_tiles(SoftmaxKernel kernel, const Queue& queue) {
  // Where there are many classes, all warps of a block share a tile: each then has two groups of classes or more.
  constexpr int64_t kFew = 2 * kClassesAtOnce * kThreads / kWarp;
  kernel.parts = kernel.tensors.classes >= kFew ? kThreads / kWarp : 1;
  const int64_t in_block = kThreads / kernel.parts * P, positions = kernel.tensors.outer * kernel.tensors.inner;
  launch(softmax_tiles_kernel<S, kSoft, kTerms, P>, queue,
         blocks_for(queue, (positions + in_block - 1) / in_block, kThreads), kThreads, kernel);
}

}  // namespace fused_losses
