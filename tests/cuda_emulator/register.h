// Read before each of csrc/ops/*_cuda.cpp and csrc/schema.cpp (g++ -include): what they register under `pyramid` for
// CUDA is registered under `pyramid_emulated` for CPU tensors, and their device guards guard nothing.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

namespace torch::stable::accelerator {
struct EmulatedGuard {
  explicit EmulatedGuard(DeviceIndex) {}
};
}  // namespace torch::stable::accelerator
#define DeviceGuard EmulatedGuard

#undef STABLE_TORCH_LIBRARY
#define STABLE_TORCH_LIBRARY(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(pyramid_emulated, m)
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) _STABLE_TORCH_LIBRARY_IMPL(pyramid_emulated, CPU, m, C10_UID)
