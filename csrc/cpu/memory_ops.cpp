// The operators that show and control the pool of large buffers. Their schemas are in fused_losses/ops.py.
#include "memory.h"

#include "../checked_view.h"

namespace fused_losses {

namespace {

void set_limit(int64_t bytes) {
  named("set_cache_limit", [&] {
    if (bytes < 0) refuse("bytes", "be 0 or more", "it is " + std::to_string(bytes));
  });
  pool_set_limit(bytes);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CompositeExplicitAutograd, m) {
  m.impl("cached_bytes", TORCH_BOX(&pool_held_bytes));
  m.impl("empty_cache", TORCH_BOX(&pool_release));
  m.impl("set_cache_limit", TORCH_BOX(&set_limit));
}

}  // namespace fused_losses
