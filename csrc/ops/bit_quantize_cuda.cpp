// bit_quantize and its backward, CUDA: device guard, current stream.
#include "ops/bit_quantize.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "ops/cuda_stream.h"

namespace pyramid::ops {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> bit_quantize(const Tensor& x, double temperature) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const BitQuantizeArguments a = prepare(x, temperature);
  PYRAMID_DISPATCH_FLOATING("bit_quantize", x, [&] {
    PYRAMID_CUDA_CHECK("bit_quantize", kernels::bit_quantize_cuda(forward_params<element_t>(a), current_stream(a.x)));
  });
  return {a.codes, a.ids, a.entropy, a.commitment};
}

Tensor bit_quantize_backward(const Tensor& x, double temperature, const std::optional<Tensor>& grad_codes,
                             const std::optional<Tensor>& grad_entropy, const std::optional<Tensor>& grad_commitment) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const BitQuantizeArguments a = check_bits("bit_quantize_backward", x, temperature);
  const BitQuantizeGradients grads = check_grads(a, grad_codes, grad_entropy, grad_commitment);
  const Tensor grad_x = torch::stable::empty_like(a.x);
  PYRAMID_DISPATCH_FLOATING("bit_quantize_backward", x, [&] {
    PYRAMID_CUDA_CHECK("bit_quantize_backward", kernels::bit_quantize_backward_cuda(
                                                    backward_params<element_t>(a, grads, grad_x), current_stream(a.x)));
  });
  return grad_x;
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CUDA, m) {
  m.impl("bit_quantize", TORCH_BOX(&pyramid::ops::bit_quantize));
  m.impl("bit_quantize_backward", TORCH_BOX(&pyramid::ops::bit_quantize_backward));
}
