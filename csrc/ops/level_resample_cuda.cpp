// level_resample and its backward, CUDA: device guard, current stream.
#include "ops/level_resample.h"

#include <torch/csrc/stable/library.h>

#include "ops/cuda_stream.h"

namespace pyramid::ops {
namespace {

Tensor level_resample(const Tensor& x, std::vector<int64_t> size) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const LevelResampleArguments a = prepare_resample(x, size, false);
  check_device_grid("level_resample", a.x, a.out);
  PYRAMID_DISPATCH_FLOATING("level_resample", x, [&] {
    PYRAMID_CUDA_CHECK("level_resample", kernels::level_resample_cuda(resample_params<element_t>(a), current_stream(x)));
  });
  return a.out;
}

Tensor level_resample_backward(const Tensor& grad, std::vector<int64_t> size) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const LevelResampleArguments a = prepare_resample(grad, size, true);
  check_device_grid("level_resample_backward", a.x, a.out);
  PYRAMID_DISPATCH_FLOATING("level_resample_backward", grad, [&] {
    PYRAMID_CUDA_CHECK("level_resample_backward",
                       kernels::level_resample_cuda(resample_params<element_t>(a), current_stream(grad)));
  });
  return a.out;
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CUDA, m) {
  m.impl("level_resample", TORCH_BOX(&pyramid::ops::level_resample));
  m.impl("level_resample_backward", TORCH_BOX(&pyramid::ops::level_resample_backward));
}
