// The pool that large gradients come from. A step of a loss is bound by memory, and most of its time can go into page
// faults: the C library returns blocks above 32 MiB to the system whenever they are freed, and the next step pays again
// for every 4 KiB page. The pool takes whole pages of 2 MiB, and keeps them when they are freed, up to a limit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fused_losses {

// Buffers of less than 4 MiB, two of the pool's pages, come from the C library, which keeps them by itself.
inline constexpr size_t kPooledBytes = size_t{4} << 20;

// At least `bytes` bytes, not initialised, aligned to 2 MiB; and giving them back. Throws std::bad_alloc.
void* pool_allocate(size_t bytes);
void pool_free(void* memory);

// How many bytes of freed buffers the pool holds; returning them to the system; and setting the most it may hold.
int64_t pool_held_bytes();
void pool_release();
void pool_set_limit(int64_t bytes);

}  // namespace fused_losses
