// torch's own thread pool, through its C interface, so that kernels include no header of tensors; and sums of doubles.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace fused_losses {

// Calls body(begin, end) for disjoint ranges that cover [0, count), on torch's threads, each with at least `grain`
// items. body must not throw on another thread.
template <class Body>
inline void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count <= grain) {  // not worth a call through the C interface
    if (count > 0) body(int64_t{0}, count);
    return;
  }
  const auto trampoline = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  if (torch_parallel_for(0, count, grain, trampoline, const_cast<void*>(static_cast<const void*>(&body)))) {
    throw std::runtime_error("fused_losses: torch's thread pool failed");
  }
}

// Neumaier's compensated sum, whose error does not grow with its length: so float64 losses over millions of rows are
// right to a unit or two in the last place, too.
class Sum {
 public:
  void operator+=(double term) {
    const double next = total_ + term;
    lost_ += std::fabs(total_) >= std::fabs(term) ? (total_ - next) + term : (term - next) + total_;
    total_ = next;
  }
  // An infinite summand makes the compensation NaN, so it is dropped.
  double value() const { return std::isfinite(total_) ? total_ + lost_ : total_; }

 private:
  double total_ = 0;
  double lost_ = 0;
};

inline double sum_of(const std::vector<double>& terms) {
  Sum sum;
  for (const double term : terms) sum += term;
  return sum.value();
}

inline int64_t thread_count() {
  uint32_t count = 1;
  if (torch_get_num_threads(&count)) count = 1;
  return count;
}

}  // namespace fused_losses
