// The operators of the losses of vectors, from tensors to the engine. Their schemas are in fused_losses/ops.py.
#include "../formulas/vectors.h"
#include "../vectors_call.h"
#include "tensors.h"
#include "vectors_engine.h"

namespace fused_losses {
namespace {

template <double (*engine)(const VectorsArguments&)>
class Call : public VectorsCall, public OnCpu<Call<engine>> {
 public:
  using VectorsCall::VectorsCall;

  double divisor() const { return divisor_; }

  double run(double scale, bool) {
    arguments_.scale = scale;
    return engine(arguments_);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, m) {
#define FUSED_LOSSES_IMPLEMENT(name, engine) \
  LossOperators<Call<engine>, const std::vector<double>&>::implement(m, #name);
  FUSED_LOSSES_VECTORS(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
