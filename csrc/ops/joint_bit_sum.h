// joint_bit_sum: the checks and allocations that CPU and CUDA share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "check.h"
#include "dispatch.h"
#include "kernels/joint_bit_sum.h"

namespace pyramid::ops {

using torch::stable::Tensor;

struct JointArguments {
  Tensor x;  // (N, d) contiguous
  kernels::JointShape shape;
  double temperature;
  torch::headeronly::ScalarType compute;

  // A workspace or a result in the type of the arithmetic.
  Tensor numbers(std::vector<int64_t> size) const { return torch::stable::new_empty(x, size, compute); }
};

inline JointArguments check_joint(const char* op, const Tensor& x, double temperature) {
  using torch::headeronly::ScalarType;
  PYRAMID_CHECK(x.dim() == 2 && x.size(1) >= 1 && x.size(1) <= kernels::kMostJointBits, op,
                ": x must be (N, d) with 1 <= d <= ", kernels::kMostJointBits, ", got ", shape_of(x));
  PYRAMID_CHECK(temperature > 0, op, ": temperature must be positive, got ", temperature);
  return {torch::stable::contiguous(x), {x.size(0), x.size(1)}, temperature,
          x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float};
}

inline Tensor check_joint_grad(const JointArguments& a, const Tensor& grad) {
  const int64_t low = a.shape.low_codes(), high = a.shape.high_codes();
  PYRAMID_CHECK(grad.dim() == 2 && grad.size(0) == low && grad.size(1) == high, "joint_bit_sum_backward: grad must be (",
                low, ", ", high, ") for x ", shape_of(a.x), ", got ", shape_of(grad));
  PYRAMID_CHECK(grad.scalar_type() == a.compute, "joint_bit_sum_backward: grad must be ",
                torch::headeronly::toString(a.compute), ", got ", dtype_of(grad));
  PYRAMID_CHECK(grad.device() == a.x.device(), "joint_bit_sum_backward: grad and x must be on one device");
  return torch::stable::contiguous(grad);
}

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <class T>
const T* const_data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

}  // namespace pyramid::ops
