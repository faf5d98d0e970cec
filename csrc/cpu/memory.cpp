// The pool of large buffers: freed ones by size, and the sizes of those in use.
#include "memory.h"

#include <sys/mman.h>

#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

namespace fused_losses {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// A training step frees a gradient before it asks for the next one of the same size, so the gradients of about one step
// are worth holding: 1 GiB, which is 8192 rows of 32768 logits in float32. Offering the pages to the system meanwhile
// (MADV_FREE) was measured to make steps slower.
constexpr size_t kDefaultLimit = size_t{1} << 30;

// The largest freed buffer that may serve a request: a quarter more than asked for. The rest is unused memory that no
// count shows, so there should not be much of it.
constexpr size_t usable_from(size_t bytes) { return bytes + bytes / 4; }

class Pool {
 public:
  void* allocate(size_t bytes) {
    bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    const std::lock_guard<std::mutex> lock(mutex_);
    void* memory = nullptr;
    const auto found = free_.lower_bound(bytes);
    if (found != free_.end() && found->first <= usable_from(bytes)) {
      bytes = found->first;
      memory = found->second;
      free_.erase(found);
      held_ -= bytes;
    } else {
      memory = map_pages(bytes);
    }
    sizes_[memory] = bytes;
    return memory;
  }

  void free(void* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto entry = sizes_.find(memory);
    const size_t bytes = entry->second;
    sizes_.erase(entry);
    if (bytes > limit_) {
      munmap(memory, bytes);
      return;
    }
    free_.emplace(bytes, memory);
    held_ += bytes;
    shrink(limit_);
  }

  void set_limit(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    shrink(limit_);
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    shrink(0);
  }

  size_t held() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

 private:
  // Returns the largest buffers first: these are the fewest calls, and smaller ones are likelier to be asked for again.
  void shrink(size_t limit) {
    while (held_ > limit) {
      const auto largest = std::prev(free_.end());
      munmap(largest->second, largest->first);
      held_ -= largest->first;
      free_.erase(largest);
    }
  }

  // mmap aligns to 4 KiB only. So one huge page more is mapped, and what lies outside of the aligned part given back.
  static void* map_pages(size_t bytes) {
    void* const mapped = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    const auto start = reinterpret_cast<uintptr_t>(mapped);
    const uintptr_t aligned = (start + kHugePage - 1) / kHugePage * kHugePage;
    if (aligned != start) munmap(mapped, aligned - start);
    const uintptr_t end = aligned + bytes;
    if (end != start + bytes + kHugePage) munmap(reinterpret_cast<void*>(end), start + bytes + kHugePage - end);
    void* const memory = reinterpret_cast<void*>(aligned);
    madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  std::unordered_map<void*, size_t> sizes_;
  size_t held_ = 0;
  size_t limit_ = kDefaultLimit;
};

// The pool is never destroyed, since tensors may outlive the destructors of static objects.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

}  // namespace

void* pool_allocate(size_t bytes) { return pool().allocate(bytes); }
void pool_free(void* memory) { pool().free(memory); }
int64_t pool_held_bytes() { return static_cast<int64_t>(pool().held()); }
void pool_release() { pool().release(); }
void pool_set_limit(int64_t bytes) { pool().set_limit(static_cast<size_t>(bytes)); }

}  // namespace fused_losses
