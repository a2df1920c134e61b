// The types of the CUDA runtime, where this is compiled for it (setup.py: -DUSE_CUDA).
#pragma once

#ifdef USE_CUDA
#define PYRAMID_WITH_CUDA 1
#include <cuda_runtime.h>
#else
#define PYRAMID_WITH_CUDA 0
#endif
