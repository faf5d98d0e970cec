// The operators of the losses of vectors on a GPU, from tensors to the engine. Their schemas are in
// fused_losses/ops.py.
#include "vectors_engine.h"

#include "../formulas/vectors.h"
#include "../vectors_call.h"
#include "tensors.h"

namespace fused_losses {
namespace {

template <void (*engine)(const VectorsArguments&, const Scaling&, const Reduced&, const Queue&), int several,
          int parameter_count>
class Call : public VectorsCall<several, parameter_count>, public OnGpu<Call<engine, several, parameter_count>> {
 public:
  Call(const Operands& operands, const std::vector<double>& parameters, int64_t reduction,
       const OptionalTensor& upstream)
      : VectorsCall<several, parameter_count>(operands, parameters, reduction, upstream),
        OnGpu<Call<engine, several, parameter_count>>(operands.input) {
    this->scaling_.divisor = this->divisor_;
  }

  void run(const Scaling& scaling, const Reduced& reduced, bool) const {
    engine(this->arguments_, scaling, reduced, this->queue());
  }
};

}  // namespace

FUSED_LOSSES_GPU_OPERATORS(m) {
#define FUSED_LOSSES_IMPLEMENT(name, engine, several, parameter_count) \
  LossOperators<#name, Call<engine, several, parameter_count>, const std::vector<double>&>::implement(m);
  FUSED_LOSSES_VECTORS(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
