// torch's own thread pool, reached through its C interface: kernels include no tensor headers.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace fused_losses {

// body(begin, end) over disjoint ranges that cover [0, count), at least `grain` items to a thread.
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

// A sum of doubles that loses nothing by its length (Neumaier's): float64 losses over millions of rows are good
// to an ulp or two, too.
class Sum {
 public:
  void operator+=(double term) {
    const double next = total_ + term;
    lost_ += std::fabs(total_) >= std::fabs(term) ? (total_ - next) + term : (term - next) + total_;
    total_ = next;
  }
  // Of infinities, what is lost is NaN.
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
