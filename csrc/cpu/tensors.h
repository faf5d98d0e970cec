// Making tensors on the CPU, and what all losses on the CPU have in common.
#pragma once

#include "../tensor.h"
#include "gather.h"

namespace fused_losses {

// Not initialised.
Tensor empty(const Layout& layout, ScalarType dtype);

// The number in a tensor of one element, and below, setting it.
inline double number(const View& view) { return load_as<double>(view.data, view.dtype, 0); }

inline void set_number(const View& view, double value) { store_as(view.data, view.dtype, 0, value); }

// What all losses on the CPU have in common, for LossOperators. A Call has
//   prepare()            throws what errors there are, before the input may be overwritten; may be left out
//   divisor()            what the reduction divides by
//   run(scale, forward)  writes derivatives times scale and losses; going forward, returns the sum of the losses
template <class Call>
class OnCpu {
 public:
  void prepare() const {}

  static Tensor empty(const Layout& layout, ScalarType dtype, const Tensor&) {
    return fused_losses::empty(layout, dtype);
  }

  void forward(const View* loss) {
    self().prepare();
    const double sum = self().run(1 / self().divisor(), true);
    if (loss) set_number(*loss, sum / self().divisor());
  }

  void backward(const View* upstream, bool ready) {
    const double scale = upstream ? number(*upstream) : 1;
    if (ready && scale == 1) return;
    self().prepare();
    self().run(scale / self().divisor(), false);
  }

 private:
  Call& self() { return static_cast<Call&>(*this); }
};

}  // namespace fused_losses
