// The pool of large buffers: free stretches of memory in the order of their addresses. A request takes a part of the
// smallest one that is large enough; what is freed joins its neighbours.
#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <mutex>
#include <vector>

namespace fused_losses {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// A training step frees a gradient before it asks for the next one of the same size, so the gradients of about one step
// are worth holding: 1 GiB, which is 8192 rows of 32768 logits in float32. Offering the pages to the system meanwhile
// (MADV_FREE) was measured to make steps slower.
constexpr size_t kDefaultLimit = size_t{1} << 30;

// What has not been in use at a time within the last 16 to 32 allocations goes back. A model whose step has up to 16
// large gradients at a time keeps them all.
constexpr int kWindow = 16;

size_t whole_pages(size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

bool is_limited(int resource) {
  rlimit limit;
  return getrlimit(static_cast<__rlimit_resource>(resource), &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
}

// Where the system promises no more memory than it has (mode 2), addresses count as memory.
bool promises_are_kept() {
  int mode = 0;
  std::ifstream("/proc/sys/vm/overcommit_memory") >> mode;
  return mode == 2;
}

// Whether what the pool holds, used or not, may be what another allocation fails for.
bool addresses_are_scarce() {
  static const bool always = promises_are_kept();
  return always || is_limited(RLIMIT_AS) || is_limited(RLIMIT_DATA);
}

class Pool {
 public:
  Pool() {
    // A fork copies the memory of all threads but only one of them: another one that held the lock would never give it
    // back. The child has no use for what is free, whose pages it would only share.
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] {
                     instance().give_up();
                     instance().mutex_.unlock();
                   });
  }

  // Never destroyed, since tensors may outlive the destructors of static objects. Made when the library is loaded, so
  // that no fork falls into it.
  static Pool& instance() { return *instance_; }

  void* allocate(size_t bytes) {
    bytes = whole_pages(bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (bytes > limit_ || addresses_are_scarce()) {
      trim();
      return nullptr;
    }
    // Each buffer in use may become a free stretch; so free() never needs memory.
    free_.reserve(free_.size() + buffers_ + 1);
    void* memory = take(bytes);
    in_use_ += bytes;
    count_peak();
    trim();
    if (!memory) memory = map_pages(bytes);
    if (!memory) {
      give_up();
      memory = map_pages(bytes);
    }
    if (memory) {
      ++buffers_;
    } else {
      in_use_ -= bytes;
      give_up();
    }
    return memory;
  }

  void free(void* memory, size_t bytes) {
    bytes = whole_pages(bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    --buffers_;
    in_use_ -= bytes;
    held_ += bytes;
    insert(static_cast<char*>(memory), bytes);
    trim();
  }

  void set_limit(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    trim();
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    give_up();
  }

  size_t held() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

 private:
  struct Stretch {
    char* begin;
    size_t bytes;

    char* end() const { return begin + bytes; }
  };

  static bool is_smaller(const Stretch& a, const Stretch& b) { return a.bytes < b.bytes; }

  // The beginning of the smallest stretch that is large enough, or null.
  void* take(size_t bytes) {
    const auto rank = [bytes](const Stretch& stretch) { return stretch.bytes < bytes ? SIZE_MAX : stretch.bytes; };
    const auto found =
        std::min_element(free_.begin(), free_.end(), [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
    if (found == free_.end() || found->bytes < bytes) return nullptr;
    char* const memory = found->begin;
    found->begin += bytes;
    found->bytes -= bytes;
    if (found->bytes == 0) free_.erase(found);
    held_ -= bytes;
    return memory;
  }

  void insert(char* begin, size_t bytes) {
    const auto next = std::lower_bound(free_.begin(), free_.end(), begin,
                                       [](const Stretch& stretch, const char* at) { return stretch.begin < at; });
    const auto here = free_.insert(next, {begin, bytes});
    join(here);
    if (here != free_.begin()) join(here - 1);
  }

  // A stretch and the next one, if there is nothing between them.
  void join(std::vector<Stretch>::iterator stretch) {
    const auto next = stretch + 1;
    if (next == free_.end() || stretch->end() != next->begin) return;
    stretch->bytes += next->bytes;
    free_.erase(next);
  }

  void count_peak() {
    if (++allocations_ == kWindow) {
      allocations_ = 0;
      earlier_peak_ = peak_;
      peak_ = 0;
    }
    peak_ = std::max(peak_, in_use_);
  }

  void trim() {
    const size_t peak = std::max(peak_, earlier_peak_);
    shrink(addresses_are_scarce() ? 0 : std::min(limit_, peak > in_use_ ? peak - in_use_ : 0));
  }

  // Holds nothing, and forgets what was in use before.
  void give_up() {
    shrink(0);
    peak_ = in_use_;
    earlier_peak_ = 0;
  }

  // Cuts the largest stretches first: these are the fewest calls.
  void shrink(size_t limit) {
    while (held_ > limit) {
      const auto largest = std::max_element(free_.begin(), free_.end(), is_smaller);
      const size_t cut = std::min(largest->bytes, whole_pages(held_ - limit));
      largest->bytes -= cut;
      held_ -= cut;
      munmap(largest->end(), cut);
      if (largest->bytes == 0) free_.erase(largest);
    }
  }

  // Null if there is no memory. mmap aligns to 4 KiB only. So one huge page more is mapped, and what lies outside of
  // the aligned part given back.
  static void* map_pages(size_t bytes) {
    void* const mapped = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    const auto start = reinterpret_cast<uintptr_t>(mapped);
    const uintptr_t aligned = whole_pages(start);
    if (aligned != start) munmap(mapped, aligned - start);
    const uintptr_t end = aligned + bytes;
    if (end != start + bytes + kHugePage) munmap(reinterpret_cast<void*>(end), start + bytes + kHugePage - end);
    void* const memory = reinterpret_cast<void*>(aligned);
    madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
  }

  static Pool* const instance_;

  std::mutex mutex_;
  std::vector<Stretch> free_;
  size_t buffers_ = 0;  // in use
  size_t in_use_ = 0;   // bytes, and so below
  size_t held_ = 0;
  size_t limit_ = kDefaultLimit;
  int allocations_ = 0;  // in this window
  size_t peak_ = 0;      // the most in use at a time in this window
  size_t earlier_peak_ = 0;
};

Pool* const Pool::instance_ = new Pool;

}  // namespace

void* pool_allocate(size_t bytes) { return Pool::instance().allocate(bytes); }
void pool_free(void* memory, size_t bytes) noexcept { Pool::instance().free(memory, bytes); }
int64_t pool_held_bytes() { return static_cast<int64_t>(Pool::instance().held()); }
void pool_release() { Pool::instance().release(); }
void pool_set_limit(int64_t bytes) { Pool::instance().set_limit(static_cast<size_t>(bytes)); }

void advise_huge_pages(void* memory, size_t bytes) {
  const auto start = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = whole_pages(start), end = (start + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

}  // namespace fused_losses
