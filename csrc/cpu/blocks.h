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

// Elements [begin, begin + count).
struct Piece {
  int64_t begin, count;
};

// The elements [begin, end) in pieces of kSize, of which the last may be shorter: for (const Piece piece : pieces).
template <int64_t kSize>
class Pieces {
 public:
  Pieces(int64_t begin, int64_t end) : begin_(begin), end_(end) {}

  struct End {};
  struct Iterator {
    int64_t at, end;

    Piece operator*() const { return {at, std::min(kSize, end - at)}; }
    void operator++() { at += kSize; }
    bool operator!=(End) const { return at < end; }
  };
  Iterator begin() const { return {begin_, end_}; }
  End end() const { return {}; }

 private:
  int64_t begin_, end_;
};

using Chunks = Pieces<kChunk>;

template <class T>
using Runs = Pieces<kRun<T>>;

// How many stretches a row of n elements has.
inline int64_t stretches_of(int64_t n) { return (n + kStretch - 1) / kStretch; }

// The chunks of one stretch of a row of n elements.
inline Chunks chunks_of_stretch(int64_t stretch, int64_t n) {
  return {stretch * kStretch, std::min(n, (stretch + 1) * kStretch)};
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
