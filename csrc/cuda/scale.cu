// The kernel of scale_.
#include "scale.h"

#include "lines.cuh"
#include "reduce.cuh"

namespace fused_losses {
namespace {

struct Kernel {
  Line gradient;
  Span<int64_t> span;
  Scaling by;
};

template <class S>
__global__ void __launch_bounds__(kThreads) scale_kernel(const __grid_constant__ Kernel kernel) {
  using Access = Packed<S>;
  using T = Compute<S>;
  const double by = upstream_of(kernel.by);
  if (by == 1) return;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       p < kernel.span.template packs<Access::kElements>(); p += step) {
    T elements[Access::kElements];
    Access::unpack(Access::load(kernel.gradient, kernel.span, p, T(0)), elements);
    unrolled<Access::kElements>(
        [&](int j) { elements[j] = elements[j] == 0 ? elements[j] : elements[j] * static_cast<T>(by); });
    Access::store(kernel.gradient, kernel.span, p, elements);
  }
}

}  // namespace

void scale(const Result& gradient, int64_t count, const Result& factor, const Queue& queue) {
  with_storage(gradient.dtype, [&](auto storage) {
    using S = decltype(storage);
    const Span<int64_t> span{shift_of(gradient.data, sizeof(S)), count};
    const Kernel kernel{{gradient.data, gradient.dtype}, span, {factor.data, factor.dtype}};
    launch(scale_kernel<S>, queue, blocks_for(queue, count / (kPack<S> * kThreads) + 1, kThreads), kThreads, kernel);
  });
}

}  // namespace fused_losses
