// joint_bit_sum and its backward, CPU: blocks of the product (forward) or groups of rows (backward) are shared out among
// torch's threads.
#include "ops/joint_bit_sum.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

namespace pyramid::ops {
namespace {

constexpr int64_t kGroup = 32;  // rows

template <class T>
Tensor probabilities_of(const JointArguments& a) {
  using C = kernels::compute_t<T>;
  const Tensor probabilities = a.numbers({2, a.shape.num_bits, a.shape.padded_rows()});
  const kernels::JointProbabilitiesParams<T> p{a.shape, a.temperature, const_data_of<T>(a.x), data_of<C>(probabilities)};
  torch::stable::parallel_for(0, a.shape.padded_rows() / kGroup, 16, [&](int64_t begin, int64_t end) {
    PYRAMID_BEST_ISA(joint_probabilities_rows<T>)(p, begin, end);
  });
  return probabilities;
}

template <class T>
void sum_on_cpu(const JointArguments& a, const Tensor& joint) {
  using C = kernels::compute_t<T>;
  const int64_t rows = a.shape.padded_rows();
  const Tensor probabilities = probabilities_of<T>(a), low = a.numbers({rows, 8}), high = a.numbers({rows, 32});
  const kernels::JointBitSumParams<C> p{a.shape, const_data_of<C>(probabilities), data_of<C>(low), data_of<C>(high),
                                        data_of<C>(joint)};
  torch::stable::parallel_for(0, rows / kGroup, 16, [&](int64_t begin, int64_t end) {
    PYRAMID_BEST_ISA(joint_tables_rows<C>)(p, begin, end);
  });
  torch::stable::parallel_for(0, p.num_blocks(), 1, [&](int64_t begin, int64_t end) {
    PYRAMID_BEST_ISA(joint_bit_sum_blocks<C>)(p, begin, end);
  });
}

Tensor joint_bit_sum(const Tensor& x, double temperature) {
  const JointArguments a = check_joint("joint_bit_sum", x, temperature);
  const std::vector<int64_t> size{a.shape.low_codes(), a.shape.high_codes()};
  if (a.shape.num_rows == 0) return torch::stable::new_zeros(a.x, size, a.compute);
  const Tensor joint = a.numbers(size);
  PYRAMID_DISPATCH_FLOATING("joint_bit_sum", x, [&] { sum_on_cpu<element_t>(a, joint); });
  return joint;
}

template <class T>
void backward_on_cpu(const JointArguments& a, const Tensor& grad, const Tensor& grad_x) {
  using C = kernels::compute_t<T>;
  const int64_t low = a.shape.low_codes(), high = a.shape.high_codes();
  const int64_t padded_low = kernels::ceil_div(low, 8) * 8, padded_high = kernels::ceil_div(high, 8) * 8;
  const Tensor probabilities = probabilities_of<T>(a);
  const Tensor packed_low = a.numbers({padded_low, high}), packed_high = a.numbers({padded_high, low});
  const kernels::JointBitSumBackwardParams<T> p{
      a.shape, a.temperature, const_data_of<C>(probabilities), const_data_of<C>(grad), data_of<C>(packed_low),
      data_of<C>(packed_high), data_of<T>(grad_x)};
  const int64_t panel_grain = std::max<int64_t>(1, 2048 / low);
  torch::stable::parallel_for(0, (padded_low + padded_high) / 8, panel_grain, [&](int64_t begin, int64_t end) {
    PYRAMID_BEST_ISA(joint_panels<T>)(p, begin, end);
  });
  torch::stable::parallel_for(0, a.shape.padded_rows() / kGroup, 1, [&](int64_t begin, int64_t end) {
    PYRAMID_BEST_ISA(joint_bit_sum_backward_rows<T>)(p, begin, end);
  });
}

Tensor joint_bit_sum_backward(const Tensor& grad, const Tensor& x, double temperature) {
  const JointArguments a = check_joint("joint_bit_sum_backward", x, temperature);
  const Tensor whole = check_joint_grad(a, grad), grad_x = torch::stable::empty_like(a.x);
  if (a.shape.num_rows == 0) return grad_x;
  PYRAMID_DISPATCH_FLOATING("joint_bit_sum_backward", x, [&] { backward_on_cpu<element_t>(a, whole, grad_x); });
  return grad_x;
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CPU, m) {
  m.impl("joint_bit_sum", TORCH_BOX(&pyramid::ops::joint_bit_sum));
  m.impl("joint_bit_sum_backward", TORCH_BOX(&pyramid::ops::joint_bit_sum_backward));
}
