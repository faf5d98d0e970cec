// The operators of the losses of vectors, from tensors to the engine. Their schemas are in fused_losses/ops.py.
#include "../formulas/vectors.h"
#include "../vectors_call.h"
#include "tensors.h"
#include "vectors_engine.h"

namespace fused_losses {
namespace {

template <double (*engine)(const VectorsArguments&), int several, int parameter_count>
class Call : public VectorsCall<several, parameter_count>, public OnCpu<Call<engine, several, parameter_count>> {
 public:
  using VectorsCall<several, parameter_count>::VectorsCall;

  double divisor() const { return this->divisor_; }

  double run(double scale, bool) {
    this->arguments_.scale = scale;
    return engine(this->arguments_);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, m) {
#define FUSED_LOSSES_IMPLEMENT(name, engine, several, parameter_count) \
  LossOperators<#name, Call<engine, several, parameter_count>, const std::vector<double>&>::implement(m);
  FUSED_LOSSES_VECTORS(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
