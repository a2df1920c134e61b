// joint_bit_sum and its backward, CUDA: device guard, current stream.
#include "ops/joint_bit_sum.h"

#include <torch/csrc/stable/library.h>

#include "ops/cuda_stream.h"

namespace pyramid::ops {
namespace {

template <class T>
Tensor probabilities_of(const JointArguments& a) {
  using C = kernels::compute_t<T>;
  const Tensor probabilities = a.numbers({2, a.shape.num_bits, a.shape.padded_rows()});
  const kernels::JointProbabilitiesParams<T> p{a.shape, a.temperature, const_data_of<T>(a.x), data_of<C>(probabilities)};
  PYRAMID_CUDA_CHECK("joint_bit_sum", kernels::joint_probabilities_cuda(p, current_stream(a.x)));
  return probabilities;
}

template <class T>
void sum_on_cuda(const JointArguments& a, const Tensor& joint) {
  using C = kernels::compute_t<T>;
  const Tensor probabilities = probabilities_of<T>(a);
  const int64_t splits = kernels::joint_splits(a.shape);
  const Tensor partial = a.numbers({splits > 1 ? splits : 0, a.shape.low_codes(), a.shape.high_codes()});
  const kernels::JointBitSumCudaParams<C> p{a.shape, const_data_of<C>(probabilities), splits, data_of<C>(partial),
                                            data_of<C>(joint)};
  PYRAMID_CUDA_CHECK("joint_bit_sum", kernels::joint_bit_sum_cuda(p, current_stream(a.x)));
}

Tensor joint_bit_sum(const Tensor& x, double temperature) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const JointArguments a = check_joint("joint_bit_sum", x, temperature);
  const std::vector<int64_t> size{a.shape.low_codes(), a.shape.high_codes()};
  if (a.shape.num_rows == 0) return torch::stable::new_zeros(a.x, size, a.compute);
  const Tensor joint = a.numbers(size);
  PYRAMID_DISPATCH_FLOATING("joint_bit_sum", x, [&] { sum_on_cuda<element_t>(a, joint); });
  return joint;
}

template <class T>
void backward_on_cuda(const JointArguments& a, const Tensor& grad, const Tensor& grad_x) {
  using C = kernels::compute_t<T>;
  const Tensor probabilities = probabilities_of<T>(a);
  const int64_t tiles = kernels::joint_tiles(a.shape.low_codes()) + kernels::joint_tiles(a.shape.high_codes());
  const Tensor partial = a.numbers({tiles, kernels::kJointSums, a.shape.padded_rows()});
  const kernels::JointBitSumBackwardCudaParams<T> p{a.shape, a.temperature, const_data_of<C>(probabilities),
                                                    const_data_of<C>(grad), data_of<C>(partial), data_of<T>(grad_x)};
  PYRAMID_CUDA_CHECK("joint_bit_sum_backward", kernels::joint_bit_sum_backward_cuda(p, current_stream(a.x)));
}

Tensor joint_bit_sum_backward(const Tensor& grad, const Tensor& x, double temperature) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const JointArguments a = check_joint("joint_bit_sum_backward", x, temperature);
  const Tensor whole = check_joint_grad(a, grad), grad_x = torch::stable::empty_like(a.x);
  if (a.shape.num_rows == 0) return grad_x;
  PYRAMID_DISPATCH_FLOATING("joint_bit_sum_backward", x, [&] { backward_on_cuda<element_t>(a, whole, grad_x); });
  return grad_x;
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CUDA, m) {
  m.impl("joint_bit_sum", TORCH_BOX(&pyramid::ops::joint_bit_sum));
  m.impl("joint_bit_sum_backward", TORCH_BOX(&pyramid::ops::joint_bit_sum_backward));
}
