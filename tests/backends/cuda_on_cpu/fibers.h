// The threads of a block as fibers of one CPU thread: each runs until it must wait for others, then another one runs.
//
// Reading order: Block::run() is the scheduler; kernels call wait_for_block(), exchange() and maybe_pause(), which hand
// over to it (leave()); release() decides whose wait is over.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {

inline constexpr int kWarp = 32;

// The stack of a fiber. Kernels were seen to use a few KiB; with AddressSanitizer, they use more.
inline constexpr size_t kStackBytes = 128 << 10;

enum class State { kReady, kAtBarrier, kAtCollective, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* fake_stack = nullptr;  // what AddressSanitizer keeps of a fiber that waits
  State state = State::kDone;
  unsigned index = 0;
  uint64_t given = 0;  // what it has given to a collective operation
  unsigned mask = 0;   // the lanes that take part in that
};

class Block {
 public:
  using Body = std::function<void()>;

  // on_switch(number) is called when a fiber is about to run.
  explicit Block(std::function<void(unsigned)> on_switch) : on_switch_(std::move(on_switch)) {}

  // Runs body in each of the threads, to the end. Throws what a thread throws, or that all wait for each other.
  void run(unsigned threads, size_t dynamic_bytes, const Body& body, uint64_t seed) {
    random_.seed(seed);
    body_ = &body;
    shared_.clear();
    dynamic_ = Shared("", 0, dynamic_bytes);
    failure_ = nullptr;
    while (fibers_.size() < threads) fibers_.push_back(std::make_unique<Fiber>());
    threads_ = threads;
    taken_.assign((threads + kWarp - 1) / kWarp, {});
    for (unsigned i = 0; i < threads; ++i) begin(*fibers_[i], i);
    std::vector<unsigned> order;
    while (!failure_) {
      order.clear();
      for (unsigned i = 0; i < threads; ++i) {
        if (fibers_[i]->state == State::kReady) order.push_back(i);
      }
      if (order.empty()) {
        if (finished()) return;
        if (!release()) fail_waiting();
        continue;
      }
      std::shuffle(order.begin(), order.end(), random_);
      for (unsigned i : order) {
        resume(*fibers_[i]);
        if (failure_) break;
      }
    }
    std::rethrow_exception(failure_);
  }

  void wait_for_block() {
    current_->state = State::kAtBarrier;
    leave();
  }

  // A collective operation of a warp: each lane of the mask gives a number, and gets the numbers of all lanes.
  const uint64_t* exchange(unsigned mask, uint64_t given) {
    const unsigned lane = current_->index % kWarp;
    if (!(mask >> lane & 1)) throw std::runtime_error("a thread calls a warp operation whose mask it is not in");
    current_->given = given;
    current_->mask = mask;
    current_->state = State::kAtCollective;
    leave();
    return taken_[current_->index / kWarp].data();
  }

  // Lets other threads run first, one time in four.
  void maybe_pause() {
    if (random_() % 4) return;
    current_->state = State::kReady;
    leave();
  }

  // A variable in shared memory: its file and line, and how many bytes it has.
  using Shared = std::tuple<std::string, int, size_t>;

  // The memory of a variable. It holds NaN at first, so that reading it too early shows.

  void* shared(const Shared& variable) {
    auto& memory = shared_[variable];
    if (!memory) {
      const size_t bytes = std::get<size_t>(variable);
      memory.reset(static_cast<char*>(::operator new(bytes, std::align_val_t(16))));
      std::memset(memory.get(), 0xff, bytes);
    }
    return memory.get();
  }
  void* dynamic_shared() { return shared(dynamic_); }

 private:
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t(16)); }
  };

  void begin(Fiber& fiber, unsigned index) {
    fiber.index = index;
    fiber.state = State::kReady;
    fiber.fake_stack = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Block::enter), 2, static_cast<unsigned>(self),
                static_cast<unsigned>(self >> 32));
  }

  static void enter(unsigned low, unsigned high) {
    auto& block = *reinterpret_cast<Block*>(static_cast<uintptr_t>(low) | static_cast<uintptr_t>(high) << 32);
    block.arrived(nullptr);
    try {
      (*block.body_)();
    } catch (...) {
      block.failure_ = std::current_exception();
    }
    block.current_->state = State::kDone;
    block.leave(true);
  }

  void resume(Fiber& fiber) {
    current_ = &fiber;
    on_switch_(fiber.index);
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStackBytes);
#endif
    swapcontext(&scheduler_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  void leave(bool for_good = false) {
    Fiber& fiber = *current_;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, scheduler_stack_, scheduler_bytes_);
#else
    static_cast<void>(for_good);
#endif
    swapcontext(&fiber.context, &scheduler_);
    arrived(fiber.fake_stack);
  }

  // Must be called first in a fiber that was resumed, for AddressSanitizer.
  void arrived([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_bytes_);
#endif
  }

  bool finished() const {
    return std::all_of(fibers_.begin(), fibers_.begin() + threads_,
                       [](const auto& fiber) { return fiber->state == State::kDone; });
  }

  // Makes threads ready whose wait is over: warps of which all lanes have come, else the block if all its threads have.
  // Returns whether there are any.
  bool release() {
    bool any = false;
    for (unsigned warp = 0; warp * kWarp < threads_; ++warp) any |= release_warp(warp);
    if (any) return true;
    for (unsigned i = 0; i < threads_; ++i) {
      if (fibers_[i]->state == State::kAtCollective) return false;
    }
    for (unsigned i = 0; i < threads_; ++i) {
      if (fibers_[i]->state == State::kAtBarrier) fibers_[i]->state = State::kReady;
    }
    return true;
  }

  bool release_warp(unsigned warp) {
    const unsigned first = warp * kWarp, lanes = std::min<unsigned>(kWarp, threads_ - first);
    unsigned waiting = 0, gone = 0, mask = 0;
    for (unsigned lane = 0; lane < lanes; ++lane) {
      const Fiber& fiber = *fibers_[first + lane];
      if (fiber.state == State::kAtCollective) {
        waiting |= 1u << lane;
        mask |= fiber.mask;
      }
      if (fiber.state == State::kDone) gone |= 1u << lane;
    }
    if (lanes < kWarp) gone |= ~0u << lanes;
    if (!waiting || (mask & ~(waiting | gone))) return false;
    for (unsigned lane = 0; lane < lanes; ++lane) {
      Fiber& fiber = *fibers_[first + lane];
      if (fiber.state != State::kAtCollective) continue;
      taken_[warp][lane] = fiber.given;
      fiber.state = State::kReady;
    }
    return true;
  }

  void fail_waiting() {
    unsigned barrier = 0, collective = 0;
    for (unsigned i = 0; i < threads_; ++i) {
      barrier += fibers_[i]->state == State::kAtBarrier;
      collective += fibers_[i]->state == State::kAtCollective;
    }
    throw std::runtime_error("deadlock: " + std::to_string(barrier) + " threads wait at a barrier, " +
                             std::to_string(collective) + " at a warp operation");
  }

  std::function<void(unsigned)> on_switch_;
  const Body* body_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<std::array<uint64_t, kWarp>> taken_;  // what each warp's last collective operation was given
  std::map<Shared, std::unique_ptr<char, Free>> shared_;
  Shared dynamic_;
  std::mt19937_64 random_;
  std::exception_ptr failure_;
  ucontext_t scheduler_;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_bytes_ = 0;
  Fiber* current_ = nullptr;
  unsigned threads_ = 0;
};

}  // namespace cuda_on_cpu
