// Making tensors on a GPU, where the work on them goes, and what all losses on a GPU have in common.
#pragma once

#include <cstring>
#include <future>
#include <map>
#include <mutex>
#include <utility>

#include "../tensor.h"
#include "engine.h"

#if defined(FUSED_LOSSES_CUDA_ON_CPU)
#include "cuda_on_cpu.h"
#else
#include "errors.h"
#endif

// Begins the registration of operators for GPUs; under FUSED_LOSSES_CUDA_ON_CPU, for the CPU.
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
#define FUSED_LOSSES_GPU_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, m)
#else
#define FUSED_LOSSES_GPU_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(fused_losses, CUDA, m)
#endif

namespace fused_losses {

#if defined(FUSED_LOSSES_CUDA_ON_CPU)
inline int32_t device_type() { return aoti_torch_device_type_cpu(); }
#else
inline int32_t device_type() { return aoti_torch_device_type_cuda(); }
#endif

inline Tensor empty_on(int device, const Layout& layout, ScalarType dtype) {
  return empty_strided(layout, dtype, device_type(), device);
}

// Makes the tensor's device the current one for as long as this object lives.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) {
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
    static_cast<void>(tensor);
    queue_.processors = cuda_on_cpu::processors;
    queue_.shared_bytes = cuda_on_cpu::shared_bytes;
#else
    queue_.device = tensor.get_device_index();
    FUSED_LOSSES_CHECK(aoti_torch_create_cuda_guard(queue_.device, &guard_));
    FUSED_LOSSES_CHECK(aoti_torch_get_current_cuda_stream(queue_.device, &queue_.stream));
    queue_.processors = attribute(cudaDevAttrMultiProcessorCount);
    constexpr int kDeclared = 8 << 10;  // more than any kernel declares itself
    queue_.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kDeclared;
#endif
  }
  OnDevice(const OnDevice&) = delete;
  ~OnDevice() {
#if !defined(FUSED_LOSSES_CUDA_ON_CPU)
    aoti_torch_delete_cuda_guard(guard_);
#endif
  }

  const Queue& queue() const { return queue_; }

 private:
  Queue queue_;
#if !defined(FUSED_LOSSES_CUDA_ON_CPU)
  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, queue_.device));
    return value;
  }

  CUDAGuardHandle guard_ = nullptr;
#endif
};

// The scratch memory of a launch (Reduced): what blocks leave for each other, and the count of those that have arrived,
// which is 0 between launches. Launches on one stream follow each other, so they share the memory for good. A graph may
// be replayed on any stream, beside others: each of its launches has memory of its own, which the graph sets to 0.
class Scratch {
 public:
  Scratch(const Queue& queue, Reduced& reduced) : memory_(is_capturing(queue) ? made(queue) : kept_for_stream(queue)) {
    reduced.arrived = static_cast<unsigned*>(memory_.data_ptr());
    reduced.partials = static_cast<double*>(memory_.data_ptr()) + 1;
  }

 private:
  static Tensor allocated(const Queue& queue) {
    const int64_t count = 1 + std::max({blocks_for(queue, INT32_MAX, kThreads), kPointwiseBlocks, kSoftmaxBlocks});
    return empty_on(queue.device, Layout(1, &count), ScalarType::Double);
  }

  static void set_stream(const Queue& queue) {
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
    static_cast<void>(queue);
#else
    FUSED_LOSSES_CHECK(torch_set_current_cuda_stream(queue.stream, queue.device));
#endif
  }

  static void clear(const Queue& queue, const Tensor& memory) {
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
    static_cast<void>(queue);
    std::memset(memory.data_ptr(), 0, sizeof(double));
#else
    check_cuda(cudaMemsetAsync(memory.data_ptr(), 0, sizeof(double), static_cast<cudaStream_t>(queue.stream)));
#endif
  }

  static Tensor made(const Queue& queue) {
    const Tensor memory = allocated(queue);
    clear(queue, memory);
    return memory;
  }

  // Streams are identified by their handles, as torch's allocator does. A handle may come again after its stream was
  // destroyed, so that stream must have done its work.
  static Tensor kept_for_stream(const Queue& queue) {
    static std::mutex mutex;
    // Never destroyed: when the process ends, torch's allocator may be gone already.
    static auto& by_stream = *new std::map<std::pair<int, void*>, Tensor>;
    const std::lock_guard lock(mutex);
    const auto key = std::make_pair(queue.device, queue.stream);
    auto found = by_stream.find(key);
    if (found == by_stream.end()) {
      // This thread may be allocating from the pool of a graph that is about to be captured, which must outlive its
      // memory: torch gives other threads memory from elsewhere.
      const auto elsewhere = [&queue] {
        // Allocated for this stream: else it may be memory that another stream has freed and still works on.
        set_stream(queue);
        return allocated(queue);
      };
      const Tensor memory = std::async(std::launch::async, elsewhere).get();
      clear(queue, memory);
      found = by_stream.emplace(key, memory).first;
    }
    return found->second;
  }

  static bool is_capturing(const Queue& queue) {
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
    static_cast<void>(queue);
    return false;
#else
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(static_cast<cudaStream_t>(queue.stream), &status));
    return status != cudaStreamCaptureStatusNone;
#endif
  }

  Tensor memory_;
};

// What all losses on a GPU have in common, for LossOperators. A Call has run(scaling, reduced, forward), which
// launches: derivatives are multiplied by `scaling`; going forward, the reduced loss goes to `reduced`, if there is
// one.
template <class Call>
class OnGpu {
 public:
  explicit OnGpu(const Tensor& input) : device_(input) {}

  static Tensor empty(const Layout& layout, ScalarType dtype, const Tensor& like) {
    return empty_on(like.get_device_index(), layout, dtype);
  }

  void forward(const View* loss) {
    Reduced reduced;
    if (loss) {
      reduced.loss = loss->data;
      reduced.dtype = loss->dtype;
      const Scratch scratch(queue(), reduced);
      self().run(scaling_, reduced, true);
    } else {
      self().run(scaling_, reduced, true);
    }
  }

  void backward(const View* upstream, bool ready) {
    Scaling scaling = scaling_;
    if (upstream) {
      scaling.upstream = upstream->data;
      scaling.upstream_dtype = upstream->dtype;
      scaling.ready = ready;
    }
    self().run(scaling, Reduced(), false);
  }

 protected:
  const Queue& queue() const { return device_.queue(); }

  Scaling scaling_;

 private:
  Call& self() { return static_cast<Call&>(*this); }

  OnDevice device_;
};

}  // namespace fused_losses
