// How work is cut, and how sums over it are added up.
//
// Work is cut by sizes only, never by the number of threads, and sums are added in the order of the cut. So a result
// is the same bits for any number of threads. From the smallest piece up:
//   register  kLanes<T> elements
//   run       kRun<T> elements, added lane by lane
//   chunk     kChunk elements, in the first-level cache; a chunk's sum is a double
//   block     what one thread does at a time: elements, or whole rows or tiles; its sum is compensated or short
//   stretch   kStretch elements of a row that threads share
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gather.h"
#include "parallel.h"
#include "storage.h"

namespace fused_losses {

// Elements that a lane adds up, 16, before its sum is added to a lane of such sums: if a lane of a register of two
// doubles added up half a chunk, 512 terms one after the other, the sum would be off by some units in the last place.
template <class T>
inline constexpr int64_t kRun = 16 * kLanes<T>;

// Elements that are worth a thread: 128 KiB of float32, which take about 10 us to read from memory, and a thread's
// start a few. A block of rows has so many, and so has each stretch of a row that threads share. A multiple of kChunk.
inline constexpr int64_t kStretch = 32 * kChunk;

// Calls body(begin, count) for the chunks of elements [begin, end).
template <class Body>
inline void for_each_chunk(int64_t begin, int64_t end, const Body& body) {
  for (; begin < end; begin += kChunk) body(begin, std::min(kChunk, end - begin));
}

// How many stretches a row of n elements has.
inline int64_t stretches_of(int64_t n) { return (n + kStretch - 1) / kStretch; }

// Calls body(begin, count) for the chunks of one stretch of a row of n elements.
template <class Body>
inline void for_each_chunk_of_stretch(int64_t stretch, int64_t n, const Body& body) {
  for_each_chunk(stretch * kStretch, std::min(n, (stretch + 1) * kStretch), body);
}

// Calls body(begin, count) for the runs of n elements of type T.
template <class T, class Body>
inline void for_each_run(int64_t n, const Body& body) {
  for (int64_t begin = 0; begin < n; begin += kRun<T>) body(begin, std::min(kRun<T>, n - begin));
}

// The sum over `count` items, cut into blocks of `per_block`. A thread takes `blocks_per_thread` or more of them; it
// calls make_worker() once, which returns a function: worker(begin, end) is the sum over the items of one block.
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

// How many rows or tiles of so many elements a block has: about kStretch elements of them, or one.
inline int64_t items_per_block(int64_t elements) {
  return std::max<int64_t>(1, kStretch / std::max<int64_t>(1, elements));
}

// Whether threads share each row, stretch by stretch, instead of taking rows of their own. With four rows or more for
// each thread, one that gets a row more than the others keeps them waiting for a fifth of the time at the most.
inline bool threads_share_rows(int64_t rows, int64_t stretches) { return stretches > 1 && rows < 4 * thread_count(); }

}  // namespace fused_losses
