// Where gradients live. A step of a loss is memory-bound, and most of its time can go into page faults: the
// C library returns blocks above 32 MiB to the system at every free, and the next step pays for every 4 KiB
// page again. So large buffers come from here: whole 2 MiB pages, kept warm when freed, up to a limit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fused_losses {

// Smaller buffers stay in the C library's heap, which keeps them warm by itself.
inline constexpr size_t kPooledBytes = size_t{4} << 20;

// At least `bytes` bytes, uninitialised, aligned to 2 MiB. Throws std::bad_alloc.
void* pool_allocate(size_t bytes);
void pool_free(void* memory);

// Bytes of freed buffers that the pool holds; giving them back to the system; the most it may hold.
int64_t pool_held_bytes();
void pool_release();
void pool_set_limit(int64_t bytes);

}  // namespace fused_losses
