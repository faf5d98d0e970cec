// How the pointwise engine cuts the elements of a call into blocks, each of which one thread does, and those into
// chunks; and how it reads operands that lie the other way round.
#pragma once

#include <algorithm>
#include <vector>

#include "../pointwise_arguments.h"
#include "blocks.h"
#include "transpose.h"

namespace fused_losses {

inline constexpr int64_t kBlockChunks = 16;

// 16 chunks, 64 KiB of float32: small enough that threads can share 64k elements evenly.
inline constexpr int64_t kBlock = kBlockChunks * kChunk;

// Whether an operand lies the other way round: its neighbours in memory are one above the other, in rows so long that a
// line of memory would have left the cache before the next row needs its next element. Below 256 elements, the lines of
// a row stay in the first-level cache.
inline bool is_transposed(const Operand& operand, const Iteration& iteration) {
  constexpr int64_t kLongRow = 256;
  const int last = iteration.dims - 1;
  return operand.data && last > 0 && operand.strides[last - 1] == 1 && operand.strides[last] != 0 &&
         iteration.sizes[last] >= kLongRow && iteration.sizes[last - 1] > 1;
}

// Chunk k of a block has the elements from begin + k step on, `length` of them or as many as there are before `end`.
struct PointwiseBlock {
  int64_t begin, chunks, step, length, end;

  Piece chunk(int64_t k) const {
    const int64_t at = begin + k * step;
    return {at, std::min(length, end - at)};
  }
};

// A block is a run of elements; or, where an operand is transposed, a tile of kBlockChunks rows, so that whatever lies
// side by side is used at once.
class PointwiseBlocks {
 public:
  explicit PointwiseBlocks(const PointwiseArguments& arguments) : count_(arguments.iteration.count) {
    const Iteration& iteration = arguments.iteration;
    const auto is = [&](const Operand& operand) { return is_transposed(operand, iteration); };
    tiled_ = std::any_of(std::begin(arguments.operands), std::end(arguments.operands), is) ||
             std::any_of(std::begin(arguments.factors), std::end(arguments.factors), is);
    if (!tiled_) return;
    row_ = iteration.sizes[iteration.dims - 1];
    rows_ = iteration.sizes[iteration.dims - 2];
  }

  bool tiled() const { return tiled_; }
  int64_t count() const { return tiled_ ? count_ / (rows_ * row_) * high() * wide() : ceiling(count_, kBlock); }

  PointwiseBlock operator[](int64_t b) const {
    if (!tiled_) {
      const int64_t begin = b * kBlock, end = std::min(begin + kBlock, count_);
      return {begin, ceiling(end - begin, kChunk), kChunk, kChunk, end};
    }
    const int64_t column = b % wide() * kChunk, row = b / wide() % high() * kBlockChunks, matrix = b / wide() / high();
    return {(matrix * rows_ + row) * row_ + column, std::min(kBlockChunks, rows_ - row), row_,
            std::min(kChunk, row_ - column), count_};
  }

 private:
  static int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }
  int64_t high() const { return ceiling(rows_, kBlockChunks); }
  int64_t wide() const { return ceiling(row_, kChunk); }

  int64_t count_, row_ = 0, rows_ = 0;
  bool tiled_;
};

// A transposed operand's elements of a tile, as type S: those of each row, kChunk apart from those of the next one.
template <class S>
class PointwiseTile {
 public:
  // Reads the tile if the operand is transposed, and its elements become S without loss of speed.
  void read(const Operand& operand, const Iteration& iteration, const PointwiseBlock& block) {
    is_read_ = is_transposed(operand, iteration);
    if (!is_read_) return;
    elements_.resize(kBlock);
    const int last = iteration.dims - 1;
    const int64_t offset = offset_of(block.begin, iteration.dims, iteration.sizes, operand.strides);
    with_storage(operand.dtype, [&](auto storage) {
      using E = decltype(storage);
      if constexpr (std::is_same_v<Compute<E>, Compute<S>>) {
        transpose_in(static_cast<const E*>(operand.data) + offset, operand.strides[last], block.length, block.chunks,
                     elements_.data(), kChunk);
      } else {
        is_read_ = false;
      }
    });
  }

  // The elements of chunk k; null if they have not been read.
  const S* chunk(int64_t k) const { return is_read_ ? elements_.data() + k * kChunk : nullptr; }

 private:
  std::vector<S> elements_;
  bool is_read_ = false;
};

}  // namespace fused_losses
