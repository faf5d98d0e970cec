// The numbers of what a row of a softmax may have besides the cross-entropy: z-loss, entropy, and a scale and a cap of
// the logits. cross_entropy.h has the formulas.
#pragma once

namespace fused_losses {

struct SoftmaxTerms {
  double z_loss = 0, entropy = 0, logit_scale = 1, softcap = 0;  // softcap 0: none

  bool any() const { return z_loss != 0 || entropy != 0 || logit_scale != 1 || softcap != 0; }
};

}  // namespace fused_losses
