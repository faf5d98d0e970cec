// The class margin engine on a GPU for one target in each row, in one pass. Reading order: multi_margin() at the end
// chooses how rows are accessed (lines.cuh, rows.cuh): multi_margin_tiles_kernel() copies short rows that are no whole
// packs into shared memory, many at a time; multi_margin_rows_kernel() does all others. Both compute by OneTarget.
#include "../formulas/class_margin.h"
#include "class_margin_one_target.cuh"
#include "rows.cuh"

namespace fused_losses {
namespace {

// A row gets more threads until each has so many packs of it, so that the loads of a thread overlap.
constexpr int kPacks = 4;

// The most threads of a block; and how many blocks of kThreads a multiprocessor is to hold, which leaves 64 registers
// to each thread.
constexpr int kMostThreads = 512, kResident = 8;

// The most threads that share a row of a tile. A tile then has as many rows as a pack has elements, or more, so it
// begins where a pack does if the tensor does.
constexpr int kTileLanes = 16;

// Rows of a tile get more threads until it has at most so many bytes; and the most bytes of a tile that has kTileLanes:
// kResident of them are in the shared memory of a multiprocessor at a time.
constexpr int64_t kTileBytes = 16 << 10, kMostTileBytes = 24 << 10;

template <class Formula, class Access, bool kForward>
__global__ void __launch_bounds__(kMostThreads, kResident* kThreads / kMostThreads)
    multi_margin_rows_kernel(const __grid_constant__ MultiMarginKernel kernel) {
  using T = typename Access::T;
  constexpr int kElements = Access::kElements;
  // Rows in packs have fewer than 2^30 elements.
  using Index = std::conditional_t<kElements == 1, int64_t, int>;
  constexpr T kBehind = -static_cast<T>(INFINITY);
  const ClassMarginArguments& tensors = kernel.tensors;
  with_rows<Formula, T, kForward>(kernel, [&](auto& target, const Group& group, double& sum) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * group.in_block();
#pragma unroll 1
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * group.in_block(); first < tensors.rows; first += step) {
      const bool live = group.row(first) < tensors.rows;
      const int64_t row = live ? group.row(first) : 0;
      const auto line_of = [&](const RowTensor& tensor) {
        return Line{tensor.data, tensor.dtype, row * tensor.row_stride, tensor.class_stride};
      };
      const Line x = line_of(tensors.input), gradient = line_of(tensors.gradient);
      const Span<Index> span{static_cast<Index>((kernel.shift + x.offset) & (kElements - 1)),
                             live ? static_cast<Index>(tensors.classes) : 0};
      const Index packs = span.template packs<kElements>();
      typename Access::Held held[kPacks];
      // Loads packs from this one on. Elements beyond a row's ends are behind any target.
      const auto load = [&](Index base) {
        unrolled<kPacks>([&](int h) {
          const Index p = base + h * group.lanes();
          if (p < packs) held[h] = Access::load(x, span, p, kBehind);
        });
      };
      load(group.lane());
      Index y = 0;
      if (live) {
        y = static_cast<Index>(target.label(tensors, row));
        target.begin(row, y, load_as<T>(x.data, x.dtype, x.offset + y * x.stride));
      }
      const Index place = y + span.shift, own_pack = place / kElements;
      // If the gradient overwrites the scores, no thread may write an element that another one has yet to read.
      group.sync();

      for (Index base = group.lane(); base < packs;) {
        unrolled<kPacks>([&](int h) {
          const Index p = base + h * group.lanes();
          if (p >= packs) return;
          T some[kElements];
          Access::unpack(held[h], some);
          if (p == own_pack) {
            unrolled<kElements>([&](int j) { some[j] = j == place % kElements ? kBehind : some[j]; });
          }
          unrolled<kElements>([&](int j) { some[j] = target(some[j]); });
          if (!kForward || gradient.data) Access::store(gradient, span, p, some);
        });
        base += kPacks * group.lanes();
        if (base < packs) load(base);
      }
      target.merge(group);
      if (!live) continue;
      // The thread that has stored the target's pack stores the target's own element.
      if ((!kForward || gradient.data) && (own_pack & (group.lanes() - 1)) == group.lane()) {
        store_as(gradient.data, gradient.dtype, gradient.offset + y * gradient.stride, target.derivative());
      }
      if (kForward && group.leads()) sum += target.loss(row);
    }
  });
}

// Rows that follow each other without a gap, in tiles.
template <class Formula, class S, bool kForward>
__global__ void __launch_bounds__(kThreads, kResident)
    multi_margin_tiles_kernel(const __grid_constant__ MultiMarginKernel kernel) {
  using T = Compute<S>;
  const ClassMarginArguments& tensors = kernel.tensors;
  FUSED_LOSSES_DYNAMIC_SHARED(memory);
  S* const tile = reinterpret_cast<S*>(memory);
  with_rows<Formula, T, kForward>(kernel, [&](auto& target, const Group& group, double& sum) {
    const int rows = group.in_block(), classes = static_cast<int>(tensors.classes);
    const int64_t step = static_cast<int64_t>(gridDim.x) * rows;
    S* const scores = tile + static_cast<int>(group.row(0)) * classes;
#pragma unroll 1
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * rows; first < tensors.rows; first += step) {
      const int64_t left = tensors.rows - first, row = group.row(first);
      const int count = (left < rows ? static_cast<int>(left) : rows) * classes;
      const bool live = row < tensors.rows;
      const int y = live ? static_cast<int>(target.label(tensors, row)) : 0;
      copy_in_packs(tile, static_cast<const S*>(tensors.input.data) + first * classes, count);
      __syncthreads();
      if (live) target.begin(row, y, static_cast<T>(scores[y]));
      __syncwarp();  // all threads of the group have read the target's score
      if (live && group.leads()) scores[y] = static_cast<S>(-INFINITY);
      __syncwarp();
      if (live) {
#pragma unroll 4
        for (int c = group.lane(); c < classes; c += group.lanes()) {
          scores[c] = static_cast<S>(target(static_cast<T>(scores[c])));
        }
      }
      target.merge(group);
      if (live && group.leads()) {
        scores[y] = static_cast<S>(target.derivative());
        if constexpr (kForward) sum += target.loss(row);
      }
      __syncthreads();
      if (!kForward || tensors.gradient.data) {
        copy_in_packs(static_cast<S*>(tensors.gradient.data) + first * classes, tile, count);
        __syncthreads();  // the tile may be overwritten
      }
    }
  });
}

// Launches the kernel for the direction that is asked for.
template <class Launch>
void in_direction(const MultiMarginKernel& kernel, const Launch& launch_kernel) {
  if (kernel.reduced.loss || kernel.tensors.losses.data) {
    launch_kernel(std::true_type{});
  } else {
    launch_kernel(std::false_type{});
  }
}

template <class Formula, class Access>
void launch_rows(MultiMarginKernel kernel, const Queue& queue) {
  const int64_t packs = most_packs<Access>(kernel.tensors.classes);
  // Rows of a few turns of a warp get one, since a warp needs no barriers.
  const int most = packs <= 4 * kPacks * kWarp ? kWarp : kMostThreads;
  kernel.lanes = lanes_for(packs, kPacks, most);
  const int threads = std::max(kernel.lanes, kThreads), in_block = threads / kernel.lanes;
  const int blocks = row_blocks((kernel.tensors.rows + in_block - 1) / in_block, kResident, threads);
  in_direction(kernel, [&](auto forward) {
    launch(multi_margin_rows_kernel<Formula, Access, forward>, queue, blocks, threads, kernel);
  });
}

template <class Formula, class S>
void launch_tiles(MultiMarginKernel kernel, const Queue& queue) {
  const int64_t row_bytes = kernel.tensors.classes * sizeof(S);
  kernel.lanes = 1;
  while (kernel.lanes < kTileLanes && kThreads / kernel.lanes * row_bytes > kTileBytes) kernel.lanes *= 2;
  const int in_block = kThreads / kernel.lanes;
  const int blocks = row_blocks((kernel.tensors.rows + in_block - 1) / in_block, kResident);
  in_direction(kernel, [&](auto forward) {
    launch(multi_margin_tiles_kernel<Formula, S, forward>, queue, blocks, kThreads, kernel, in_block * row_bytes);
  });
}

// Whether rows of type S follow each other without a gap, from the beginning of a pack on, and fit into a tile.
template <class S>
bool fit_tiles(const ClassMarginArguments& arguments, const Alignment& alignment) {
  return alignment.is_packed() && alignment.shift() == 0 && arguments.input.row_stride == arguments.classes &&
         (!arguments.gradient.data || arguments.gradient.row_stride == arguments.classes) &&
         kThreads / kTileLanes * arguments.classes <= kMostTileBytes / static_cast<int64_t>(sizeof(S));
}

template <class Formula>
void run(const MultiMarginKernel& kernel, const Alignment& alignment, const Queue& queue) {
  const ClassMarginArguments& tensors = kernel.tensors;
  const ScalarType dtype = tensors.input.dtype;
  if (!alignment.is_packed() || tensors.classes >= int64_t{1} << 30) {
    if (dtype == ScalarType::Double) return launch_rows<Formula, Apart<double>>(kernel, queue);
    return launch_rows<Formula, Apart<float>>(kernel, queue);
  }
  with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    if (are_whole(alignment, dtype, tensors.classes, &tensors.input.row_stride, 1)) {
      launch_rows<Formula, Whole<S>>(kernel, queue);
    } else if (fit_tiles<S>(tensors, alignment)) {
      launch_tiles<Formula, S>(kernel, queue);
    } else {
      launch_rows<Formula, Packed<S>>(kernel, queue);
    }
  });
}

}  // namespace

void multi_margin(const ClassMarginArguments& arguments, const Scaling& scaling, const Reduced& reduced,
                  const Queue& queue) {
  Alignment alignment(arguments.input.dtype);
  for (const RowTensor& tensor : {arguments.input, arguments.gradient}) {
    alignment.add(tensor.data, tensor.dtype, tensor.class_stride, &tensor.row_stride, 1);
  }
  const MultiMarginKernel kernel{arguments, scaling, reduced, alignment.shift(), 0};
  if (arguments.p == 1) {
    run<ClassMargin<1>>(kernel, alignment, queue);
  } else {
    run<ClassMargin<2>>(kernel, alignment, queue);
  }
}

}  // namespace fused_losses
