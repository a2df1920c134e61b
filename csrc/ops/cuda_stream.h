// The current stream of a tensor's device, through the C shim (no ATen).
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "check.h"

namespace pyramid::ops {

inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  PYRAMID_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) == 0,
                "pyramid: no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

}  // namespace pyramid::ops
