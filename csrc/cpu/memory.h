// The pool that large gradients come from. A step of a loss is bound by memory, and most of its time can go into page
// faults: the C library returns blocks above 32 MiB to the system whenever they are freed, and the next step pays again
// for every 4 KiB page. The pool takes whole pages of 2 MiB, and keeps them when they are freed: as many as were in use
// at a time lately, so that it never raises a process's peak, and no more than a limit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fused_losses {

// Buffers of less than 4 MiB, two of the pool's pages, come from torch's allocator, whose C library keeps them by
// itself.
inline constexpr size_t kPooledBytes = size_t{4} << 20;

// At least `bytes` bytes, not initialised, aligned to 2 MiB. Null where torch's allocator serves: if the buffer is
// larger than what the pool may hold, if the process's address space is limited, or if there is no more memory.
void* pool_allocate(size_t bytes);

// Takes back what was allocated for `bytes` bytes.
void pool_free(void* memory, size_t bytes) noexcept;

// How many bytes of freed buffers the pool holds; returning them to the system; and setting the most it may hold.
int64_t pool_held_bytes();
void pool_release();
void pool_set_limit(int64_t bytes);

// Asks the system for pages of 2 MiB where there are none yet, within a buffer that does not come from the pool.
void advise_huge_pages(void* memory, size_t bytes);

}  // namespace fused_losses
