// The operators that show and control the pool of large buffers. Their schemas are in fused_losses/ops.py.
#include "memory.h"

#include "../tensor.h"

namespace fused_losses {

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CompositeExplicitAutograd, m) {
  m.impl("cached_bytes", TORCH_BOX(&pool_held_bytes));
  m.impl("empty_cache", TORCH_BOX(&pool_release));
  m.impl("set_cache_limit", TORCH_BOX(&pool_set_limit));
}

}  // namespace fused_losses
