// The mark of functions that run on CPUs and on GPUs. To a C++ compiler, it means nothing.
#pragma once

#if defined(__CUDACC__)
#define FUSED_LOSSES_HOST_DEVICE __host__ __device__
#else
#define FUSED_LOSSES_HOST_DEVICE
#endif
