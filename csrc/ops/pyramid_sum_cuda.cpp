// pyramid_sum and its backward, CUDA: device guard, current stream.
#include "ops/pyramid_sum.h"

#include <torch/csrc/stable/library.h>

#include "ops/cuda_stream.h"

namespace pyramid::ops {
namespace {

Tensor pyramid_sum(std::vector<Tensor> codes, std::vector<int64_t> size) {
  PYRAMID_CHECK(!codes.empty(), "pyramid_sum: expected 1 to ", kernels::kMostLevels, " levels, got 0");
  const Tensor& first = codes.front();
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  const PyramidSumArguments a = prepare_sum(codes, size);
  for (const Tensor& code : codes) check_device_grid("pyramid_sum", code, a.out);
  PYRAMID_DISPATCH_FLOATING("pyramid_sum", first, [&] {
    PYRAMID_CUDA_CHECK("pyramid_sum", kernels::pyramid_sum_cuda(sum_params<element_t>(a), current_stream(first)));
  });
  return a.out;
}

std::vector<Tensor> pyramid_sum_backward(const Tensor& grad, std::vector<int64_t> grids) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  std::vector<Tensor> grads;
  for (const LevelResampleArguments& level : prepare_sum_backward(grad, grids)) {
    check_device_grid("pyramid_sum_backward", level.x, level.out);
    PYRAMID_DISPATCH_FLOATING("pyramid_sum_backward", grad, [&] {
      PYRAMID_CUDA_CHECK("pyramid_sum_backward",
                         kernels::level_resample_cuda(resample_params<element_t>(level), current_stream(grad)));
    });
    grads.push_back(level.out);
  }
  return grads;
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CUDA, m) {
  m.impl("pyramid_sum", TORCH_BOX(&pyramid::ops::pyramid_sum));
  m.impl("pyramid_sum_backward", TORCH_BOX(&pyramid::ops::pyramid_sum_backward));
}
