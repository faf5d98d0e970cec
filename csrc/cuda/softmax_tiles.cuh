// Softmax over classes that do not lie side by side, as in images: each thread has some neighbouring positions and
// walks their classes, twice; the second time from memory's caches. Warps may share the classes of a tile.
#pragma once

#include "softmax_targets.cuh"

namespace fused_losses {

// Classes that are looked at together: one of their numerators is spent on what came before.
inline constexpr int kClassesAtOnce = 4;

// P neighbouring positions for each thread: a pack, or one.
template <class S, bool kSoft, int P>
class SoftmaxTile {
  using T = Compute<S>;
  static constexpr bool kRounded = sizeof(S) == 2;
  static constexpr int kNumbers = kSoft ? 4 : 2;

 public:
  __device__ SoftmaxTile(const SoftmaxKernel& kernel, const Targets<T>& targets)
      : kernel_(kernel), tensors_(kernel.tensors), targets_(targets), part_(threadIdx.x / kWarp % kernel.parts) {
    if (kSoft && !tensors_.probabilities.data) common_mass_ = targets.mass_of_smoothing();
  }

  // The tile whose first position for this thread is `begin`. Called by all threads of the block.
  __device__ T operator()(int64_t begin) {
    const int64_t positions = positions_of(tensors_);
    const bool live = begin < positions;  // P divides their number
    const Position first = live ? position_of(tensors_, begin) : Position{0, 0};
    bool any = false;
    unrolled<P>([&](int j) {
      hot_[j] = targets_.hot({first.outer, first.inner + j}, live);
      any |= hot_[j].counts;
    });
    __syncthreads();  // in place, no one may write what another one has yet to read
    x_ = offset(tensors_.input, first);
    t_ = offset(tensors_.probabilities, first);

    SoftmaxState<T> states[P];
    const bool given = tensors_.backward && tensors_.max;
    if (given) {
      unrolled<P>([&](int j) {
        if (!hot_[j].counts) return;
        states[j] = {static_cast<const T*>(tensors_.max)[begin + j], static_cast<const T*>(tensors_.sum)[begin + j], 0,
                     0};
      });
    } else {
      if (any) add_up(states);
      merge(states);
    }
    T reference[P], of_numerator[P];
    unrolled<P>([&](int j) {
      if (kSoft && !tensors_.probabilities.data) states[j].mass = common_mass_;
      reference[j] = reference_of(states[j].max);
      of_numerator[j] = (hot_[j].hot + states[j].mass) * hot_[j].slope / states[j].sum;
    });
    if (live && (tensors_.input_gradient.data || tensors_.probabilities_gradient.data)) {
      emit(states, reference, of_numerator, offset(tensors_.input_gradient, first),
           offset(tensors_.probabilities_gradient, first));
    }
    if (tensors_.input_gradient.data && tensors_.labels.data) {
      finish_labels(states, reference, live ? offset(tensors_.input_gradient, first) : 0);
    }
    if (!live || part_ != 0 || tensors_.backward) return 0;
    T total = 0;
    unrolled<P>([&](int j) { total += finish_position(begin + j, hot_[j], states[j], reference[j]); });
    return total;
  }

 private:
  __device__ int64_t offset(const ClassTensor& tensor, const Position& position) const {
    return tensor.data ? fused_losses::offset_of(tensors_, tensor.strides, position) : 0;
  }

  // Class c of the thread's positions.
  __device__ static void load(const ClassTensor& tensor, int64_t offset, int64_t c, T* x) {
    const S* const from = static_cast<const S*>(tensor.data) + offset + c * tensor.strides.classes;
    if constexpr (P == 1) {
      x[0] = static_cast<T>(*from);
    } else {
      const Elements<S> some = load_pack<S>(from, 0).elements();
      unrolled<P>([&](int j) { x[j] = static_cast<T>(some.at[j]); });
    }
  }
  __device__ static void store(const ClassTensor& tensor, int64_t offset, int64_t c, const T* values) {
    S* const to = static_cast<S*>(tensor.data) + offset + c * tensor.strides.classes;
    if constexpr (P == 1) {
      *to = static_cast<S>(values[0]);
    } else {
      Elements<S> some;
      unrolled<P>([&](int j) { some.at[j] = static_cast<S>(values[j]); });
      store_pack(to, 0, Pack<S>(some));
    }
  }

  __device__ void load_soft(int64_t c, T* q) const {
    const ClassTensor& t = tensors_.probabilities;
    unrolled<P>([&](int j) {
      const int64_t at = t_ + c * t.strides.classes + j * t.strides.inner;
      q[j] = targets_.soft(number_at(t, at, T(0)), c);
    });
  }

  // Calls body(c) for the first of every few classes of this thread.
  template <class Body>
  __device__ void for_classes(const Body& body) const {
    const int64_t step = static_cast<int64_t>(kernel_.parts) * kClassesAtOnce;
    for (int64_t c = static_cast<int64_t>(part_) * kClassesAtOnce; c < tensors_.classes; c += step) body(c);
  }

  __device__ void add_up(SoftmaxState<T>* states) const {
    for_classes([&](int64_t first) {
      T x[kClassesAtOnce][P];
      unrolled<kClassesAtOnce>([&](int k) {
        unrolled<P>([&](int j) { x[k][j] = static_cast<T>(-INFINITY); });
        if (first + k < tensors_.classes) load(tensors_.input, x_, first + k, x[k]);
      });
      unrolled<P>([&](int j) {
        SoftmaxState<T>& state = states[j];
        T larger = state.max;
        unrolled<kClassesAtOnce>([&](int k) { larger = larger_of(x[k][j], larger); });
        const T reference = reference_of(larger);
        state.sum *= numerator<kRounded>(state.max - reference);
        if (kSoft && state.mass != 0) state.cross += state.mass * (reference_of(state.max) - reference);
        unrolled<kClassesAtOnce>([&](int k) { state.sum += numerator<kRounded>(x[k][j] - reference); });
        state.max = larger;
      });
      if constexpr (kSoft) {
        unrolled<kClassesAtOnce>([&](int k) {
          if (first + k >= tensors_.classes) return;
          T q[P];
          load_soft(first + k, q);
          unrolled<P>([&](int j) {
            states[j].mass += q[j];
            states[j].cross += q[j] * (x[k][j] - reference_of(states[j].max));
          });
        });
      }
    });
  }

  // What the warps that share the tile have found, in their order.
  __device__ void merge(SoftmaxState<T>* states) const {
    if (kernel_.parts == 1) return;
    FUSED_LOSSES_SHARED(T, found, kThreads * P * kNumbers);
    __syncthreads();  // nobody reads the last ones any more
    unrolled<P>([&](int j) {
      T* const mine = found + (threadIdx.x * P + j) * kNumbers;
      mine[0] = states[j].max;
      mine[1] = states[j].sum;
      if constexpr (kSoft) {
        mine[2] = states[j].mass;
        mine[3] = states[j].cross;
      }
    });
    __syncthreads();
    unrolled<P>([&](int j) {
      states[j] = {};
      for (int part = 0; part < kernel_.parts; ++part) {
        const T* const other = found + (thread_of(part) * P + j) * kNumbers;
        states[j].merge({other[0], other[1], kSoft ? other[2] : T(0), kSoft ? other[3] : T(0)});
      }
    });
  }

  // The thread that has the same positions in another part.
  __device__ int thread_of(int part) const { return static_cast<int>(threadIdx.x) + (part - part_) * kWarp; }

  __device__ void emit(const SoftmaxState<T>* states, const T* reference, const T* of_numerator, int64_t gradient,
                       int64_t of_t) {
    unrolled<P>([&](int j) { others_[j] = 0; });
    for_classes([&](int64_t first) {
      unrolled<kClassesAtOnce>([&](int k) {
        if (first + k >= tensors_.classes) return;
        const int64_t c = first + k;
        T x[P], q[P], made[P];
        load(tensors_.input, x_, c, x);
        if constexpr (kSoft) {
          load_soft(c, q);
          if (tensors_.probabilities_gradient.data) emit_probabilities(states, reference, c, x, of_t);
        }
        if (!tensors_.input_gradient.data) return;
        unrolled<P>([&](int j) {
          const T e = numerator<kRounded>(x[j] - reference[j]);
          if (!kRounded && c != hot_[j].y) others_[j] += e;
          made[j] = e * of_numerator[j];
          if constexpr (kSoft) made[j] -= q[j] * hot_[j].slope;
          if (!hot_[j].counts) made[j] = 0;
        });
        store(tensors_.input_gradient, gradient, c, made);
      });
    });
  }

  __device__ void emit_probabilities(const SoftmaxState<T>* states, const T* reference, int64_t c, const T* x,
                                     int64_t of_t) const {
    const ClassTensor& to = tensors_.probabilities_gradient;
    unrolled<P>([&](int j) {
      const T slope = targets_.keep() * hot_[j].slope * targets_.weight(c);
      store_as(to.data, to.dtype, of_t + c * to.strides.classes + j * to.strides.inner,
               (reference[j] - x[j] + log(states[j].sum)) * slope);
    });
  }

  // p - 1 nearly cancels where p is nearly 1: minus the sum of the others, then.
  __device__ void finish_labels(const SoftmaxState<T>* states, const T* reference, int64_t gradient) const {
    T others[P];
    if constexpr (kRounded) {
      unrolled<P>([&](int j) { others[j] = states[j].sum - numerator<true>(hot_[j].x_y - reference[j]); });
    } else {
      FUSED_LOSSES_SHARED(T, found, kThreads * P);
      unrolled<P>([&](int j) { found[threadIdx.x * P + j] = others_[j]; });
      __syncthreads();
      unrolled<P>([&](int j) {
        others[j] = 0;
        for (int part = 0; part < kernel_.parts; ++part) others[j] += found[thread_of(part) * P + j];
      });
    }
    // All elements are there before one of a column is written again; nobody reads the last sums any more.
    __syncthreads();
    if (part_ != 0) return;
    unrolled<P>([&](int j) {
      const Hot<T>& hot = hot_[j];
      if (!hot.counts) return;
      const T e_y = numerator<kRounded>(hot.x_y - reference[j]);
      const T q_y = kSoft ? targets_.soft(T(0), hot.y) : T(0);
      const T slope = gradient_at_hot(e_y, others[j], states[j].sum, hot.hot, states[j].mass, q_y) * hot.slope;
      const ClassTensor& to = tensors_.input_gradient;
      static_cast<S*>(to.data)[gradient + hot.y * to.strides.classes + j * to.strides.inner] = static_cast<S>(slope);
    });
  }

  __device__ T finish_position(int64_t i, const Hot<T>& hot, SoftmaxState<T> state, T reference) const {
    state.max = reference;
    if (tensors_.max) {
      static_cast<T*>(tensors_.max)[i] = hot.counts ? state.max : T(0);
      static_cast<T*>(tensors_.sum)[i] = hot.counts ? state.sum : T(1);
    }
    const T value = hot.counts ? cross_entropy_value(state, tensors_.labels.data != nullptr, hot.hot, hot.x_y) : T(0);
    if (tensors_.losses.data) store_as(tensors_.losses.data, tensors_.losses.dtype, i, value);
    return value;
  }

  const SoftmaxKernel& kernel_;
  const CrossEntropyArguments& tensors_;
  const Targets<T>& targets_;
  const int part_;
  T common_mass_ = 0;
  // Of the tile in work.
  Hot<T> hot_[P];
  T others_[P] = {};
  int64_t x_ = 0, t_ = 0;
};

template <class S, bool kSoft, int P>
__global__ void __launch_bounds__(kThreads, P == 1 ? kBlocks : kBlocks / 2)
    softmax_tiles_kernel(const __grid_constant__ SoftmaxKernel kernel) {
  using T = Compute<S>;
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel);
  const Targets<T> targets(kernel, upstream, divisor);
  SoftmaxTile<S, kSoft, P> tile(kernel, targets);
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

template <class S, bool kSoft, int P>
void launch_softmax_tiles(SoftmaxKernel kernel, const Queue& queue) {
  // Few positions of many classes: all warps of a block share a tile.
  constexpr int64_t kFew = 2 * kClassesAtOnce * kThreads / kWarp;
  kernel.parts = kernel.tensors.classes >= kFew ? kThreads / kWarp : 1;
  const int64_t in_block = kThreads / kernel.parts * P, positions = kernel.tensors.outer * kernel.tensors.inner;
  launch(softmax_tiles_kernel<S, kSoft, P>, queue, blocks_for(queue, (positions + in_block - 1) / in_block, kThreads),
         kThreads, kernel);
}

}  // namespace fused_losses
