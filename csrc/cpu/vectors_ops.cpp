// The operators of losses of rows, from tensors to the engine. Their schemas are in fused_losses/ops.py.
#include "../formulas/vectors.h"
#include "../vectors_call.h"
#include "vectors_engine.h"
#include "tensors.h"

namespace fused_losses {
namespace {

template <double (*engine)(const RowsArguments&)>
class Call : public RowsCall, public OnCpu<Call<engine>> {
 public:
  using RowsCall::RowsCall;

  void prepare() const {}
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
  FUSED_LOSSES_ROWS(FUSED_LOSSES_IMPLEMENT)
#undef FUSED_LOSSES_IMPLEMENT
}

}  // namespace fused_losses
