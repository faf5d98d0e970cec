// The host's part of the CUDA library over the runtime of cuda_runtime.h: `host CASE` runs a case and prints what came
// of it, which test_cuda_host.py compares.
#include <dlfcn.h>
#include <cstdio>
#include <string>
#include <thread>

#include "../../../csrc/cuda/launch.h"
#include "../../../csrc/cuda/tensors.h"

using namespace fused_losses;

static std::thread::id allocated_by;
static void* allocated_for = nullptr;
static thread_local void* current_stream = nullptr;

// Torch's C interface, answering as it would for a GPU. The linker takes these functions before those of torch's
// library.
extern "C" {
AOTITorchError aoti_torch_create_cuda_guard(int32_t, CUDAGuardHandle*) { return AOTI_TORCH_SUCCESS; }
AOTITorchError aoti_torch_delete_cuda_guard(CUDAGuardHandle) { return AOTI_TORCH_SUCCESS; }
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) { return AOTI_TORCH_SUCCESS; }
AOTITorchError torch_set_current_cuda_stream(void* stream, int32_t) {
  current_stream = stream;
  return AOTI_TORCH_SUCCESS;
}
int32_t aoti_torch_device_type_cuda() { return aoti_torch_device_type_cpu(); }
AOTITorchError aoti_torch_empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t type, int32_t device, AtenTensorHandle* result) {
  allocated_by = std::this_thread::get_id();
  allocated_for = current_stream;
  static const auto torchs =
      reinterpret_cast<decltype(&aoti_torch_empty_strided)>(dlsym(RTLD_NEXT, "aoti_torch_empty_strided"));
  return torchs(dims, sizes, strides, dtype, type, device, result);
}
}

static Queue queue_of(long stream = 1) {
  Queue queue;
  queue.stream = reinterpret_cast<void*>(stream);
  queue.shared_bytes = 200 << 10;
  return queue;
}

static void kernel(int) {}

static void try_launch(int64_t shared_bytes = 0) {
  try {
    launch(kernel, queue_of(), 1, kThreads, 0, shared_bytes);
    std::puts("launched");
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
  }
}

static Reduced scratch(long stream) {
  Reduced reduced;
  const Scratch made(queue_of(stream), reduced);
  if (*reduced.arrived) std::puts("the count is not 0");
  return reduced;
}

static const char* by_whom() { return allocated_by == std::this_thread::get_id() ? "this thread" : "another thread"; }

int main(int, char** arguments) {
  const std::string name = arguments[1];
  if (name == "limits") {
    for (int64_t bytes : {100 << 10, 60 << 10, 10 << 10}) try_launch(bytes);
    for (int limit : fake_cuda::limits) std::printf("%d KiB\n", limit >> 10);
  } else if (name == "failed launch") {
    fake_cuda::launch = cudaErrorInvalidValue;
    try_launch();
    fake_cuda::launch = cudaErrorNoKernelImageForDevice;
    try_launch();
  } else if (name == "failed limit") {
    fake_cuda::limit = cudaErrorInvalidValue;
    try_launch(100 << 10);
    std::printf("%d launches\n", fake_cuda::launches);
  } else if (name == "failed memset" || name == "failed query") {
    (name == "failed memset" ? fake_cuda::memset : fake_cuda::query) = cudaErrorInvalidValue;
    try {
      scratch(1);
    } catch (const std::runtime_error& error) {
      std::puts(error.what());
    }
  } else if (name == "scratch") {
    const Reduced first = scratch(1);
    std::puts(by_whom());
    std::puts(allocated_for == queue_of(1).stream ? "for the stream" : "for another stream");
    std::puts(scratch(1).arrived == first.arrived ? "the same again" : "another one");
    std::puts(scratch(2).arrived == first.arrived ? "the same on another stream" : "another one on another stream");
    std::printf("%d memsets\n", fake_cuda::memsets);
  } else if (name == "captured scratch") {
    const Reduced outside = scratch(1);
    fake_cuda::capturing = true;
    for (int launch = 0; launch < 2; ++launch) {
      std::puts(scratch(1).arrived == outside.arrived ? "shared" : by_whom());
    }
    std::printf("%d memsets\n", fake_cuda::memsets);
  }
  std::puts(fake_cuda::last == cudaSuccess ? "no error is left" : "an error is left");
}
