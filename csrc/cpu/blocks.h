// How work is cut, and how sums over it are added up.
//
// Work is cut by sizes only, never by the number of threads, and sums are added in the order of the cut: a result is
// the same bits for any number of threads. The pieces, from the smallest up:
//   register  kLanes<T> elements
//   run       kRun<T> elements, added up lane by lane
//   chunk     kChunk elements, which fit into the first-level cache; its sum is a double
//   stretch   kStretch elements of a long row: one thread's part where threads share the row
//   block     some elements, or whole rows or tiles, that one thread does; the sums of blocks go into a compensated sum
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gather.h"
#include "parallel.h"
#include "storage.h"

namespace fused_losses {

// A lane adds up 16 elements before its sum goes to a lane of such sums. If it added up a whole chunk, of which a lane
// of two doubles takes 512, the rounding errors of its additions would make some units in the last place.
template <class T>
inline constexpr int64_t kRun = 16 * kLanes<T>;

// 128 KiB of float32, three times of which (three operands; or logits, numerators and gradient) fit into a second-level
// cache of 512 KiB, so that a second pass finds them there; and enough work to be worth waking a thread.
inline constexpr int64_t kStretch = 32 * kChunk;

// Calls body(begin, count) for the chunks of elements [begin, end). This loop and those below are always inlined: what
// a body adds up must stay in registers.
template <class Body>
[[gnu::always_inline]] inline void for_each_chunk(int64_t begin, int64_t end, const Body& body) {
  for (; begin < end; begin += kChunk) body(begin, std::min(kChunk, end - begin));
}

// How many stretches a row of n elements has.
inline int64_t stretches_of(int64_t n) { return (n + kStretch - 1) / kStretch; }

// Calls body(begin, count) for the chunks of one stretch of a row of n elements.
template <class Body>
[[gnu::always_inline]] inline void for_each_chunk_of_stretch(int64_t stretch, int64_t n, const Body& body) {
  for_each_chunk(stretch * kStretch, std::min(n, (stretch + 1) * kStretch), body);
}

// Calls body(begin, count) for the runs of n elements of type T.
template <class T, class Body>
[[gnu::always_inline]] inline void for_each_run(int64_t n, const Body& body) {
  for (int64_t begin = 0; begin < n; begin += kRun<T>) body(begin, std::min(kRun<T>, n - begin));
}

// The sum over `count` items, cut into blocks of `per_block`, of which a thread takes `blocks_per_thread` or more. Each
// thread calls make_worker() once. It returns a function with whatever memory the thread needs: worker(begin, end) is
// the sum over items [begin, end), which are one block.
template <class MakeWorker>
inline double sum_over_blocks(int64_t count, int64_t per_block, int64_t blocks_per_thread,
                              const MakeWorker& make_worker) {
  const int64_t blocks = (count + per_block - 1) / per_block;
  std::vector<double> sums(blocks);
  parallel_for(blocks, blocks_per_thread, [&](int64_t first, int64_t last) {
    auto worker = make_worker();
    for (int64_t b = first; b < last; ++b) {
      sums[b] = worker(b * per_block, std::min(count, (b + 1) * per_block));
    }
    finish_streaming();
  });
  return sum_of(sums);
}

// How many rows or tiles of `elements` elements are a block: about kStretch elements of them, or one.
inline int64_t items_per_block(int64_t elements) {
  return std::max<int64_t>(1, kStretch / std::max<int64_t>(1, elements));
}

// Whether threads share each row, stretch by stretch, instead of taking rows of their own. From four rows for each
// thread on, they take their own: a thread that gets a fifth row while others wait makes them wait a fifth of the time.
inline bool threads_share_rows(int64_t rows, int64_t stretches) { return stretches > 1 && rows < 4 * thread_count(); }

}  // namespace fused_losses
