// How functions are marked that CPUs and GPUs run; to a C++ compiler, the mark means nothing.
#pragma once

#if defined(__CUDACC__)
#define FUSED_LOSSES_HOST_DEVICE __host__ __device__
#else
#define FUSED_LOSSES_HOST_DEVICE
#endif
