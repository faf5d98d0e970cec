// The operators of the losses of vectors on a GPU, from tensors to the engine. Their schemas are in
// fused_losses/ops.py.
#include "vectors_engine.h"

#include "../formulas/vectors.h"
#include "../vectors_call.h"
#include "tensors.h"

namespace fused_losses {
namespace {

template <void (*engine)(const VectorsArguments&, const Scaling&, const Reduced&, const Queue&)>
class Call : public VectorsCall, public OnGpu<Call<engine>> {
 public:
  Call(const Operands& operands, const std::vector<double>& parameters, int64_t reduction,
       const OptionalTensor& upstream)
      : VectorsCall(operands, parameters, reduction, upstream), OnGpu<Call<engine>>(operands.input) {
    this->scaling_.divisor = divisor_;
  }

  void run(const Scaling& scaling, const Reduced& reduced, bool) const {
    engine(arguments_, scaling, reduced, this->queue());
  }
};

}  // namespace

FUSED_LOSSES_GPU_OPERATORS(m) {
#define FUSED_LOSSES_IMPLEMENT(name, engine) \
  LossOperators<Call<engine>, const std::vector<double>&>::implement(m, #name);
  FUSED_LOSSES_VECTORS(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
