// The engine for losses of vectors, compiled for triplets and distances that take powers.
#include "vectors_engine.cuh"

namespace fused_losses {

void triplet_margin_by_powers(const VectorsArguments& arguments, const Scaling& scaling, const Reduced& reduced,
                              const Queue& queue) {
  const double* const parameters = arguments.parameters;
  const PowerDistance distance{{}, parameters[2], parameters[1]};
  vectors(TripletMargin{distance, parameters[0], parameters[3] != 0}, arguments, scaling, reduced, queue);
}

}  // namespace fused_losses
