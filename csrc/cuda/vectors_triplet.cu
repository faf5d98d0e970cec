// The engine for losses of vectors, compiled for triplets and distances that are sums or extremes.
#include "vectors_engine.cuh"

namespace fused_losses {

void triplet_margin(const VectorsArguments& arguments, const Scaling& scaling, const Reduced& reduced,
                    const Queue& queue) {
  const double* const parameters = arguments.parameters;
  const double margin = parameters[0], p = parameters[1], eps = parameters[2];
  const bool swap = parameters[3] != 0;
  const bool cosine = arguments.parameter_count > 4 && parameters[4] != 0;
  const auto with = [&](const auto& distance) {
    vectors(TripletMargin{distance, margin, swap}, arguments, scaling, reduced, queue);
  };
  if (cosine) return with(CosineDistance{});
  if (p == 1 || (arguments.length == 1 && std::isfinite(p))) return with(ManhattanDistance{{}, eps, p});
  if (p == 2 && !swap) {
    // The most common one, which has kernels of its own.
    const TripletMargin formula{EuclideanDistance{{}, eps}, margin, std::false_type()};
    return vectors(formula, arguments, scaling, reduced, queue);
  }
  if (p == 2) return with(EuclideanDistance{{}, eps});
  if (std::isinf(p)) return with(ExtremeDistance{eps, p < 0});
  triplet_margin_by_powers(arguments, scaling, reduced, queue);
}

}  // namespace fused_losses
