// bit_quantize: the checks and allocations that CPU and CUDA share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "check.h"
#include "dispatch.h"
#include "kernels/bit_quantize.h"

namespace pyramid::ops {

using torch::stable::Tensor;

struct BitQuantizeArguments {
  Tensor x;  // (..., d) contiguous
  Tensor codes, ids, entropy, commitment;
  int64_t num_rows, num_bits;
  double temperature;
  std::vector<int64_t> row_shape;
  torch::headeronly::ScalarType compute;
};

inline BitQuantizeArguments check_bits(const char* op, const Tensor& x, double temperature) {
  using torch::headeronly::ScalarType;
  PYRAMID_CHECK(x.dim() >= 1 && x.size(-1) >= 1 && x.size(-1) <= kernels::kMaxBits, op,
                ": x must be (..., d) with 1 <= d <= ", kernels::kMaxBits, ", got ", shape_of(x));
  PYRAMID_CHECK(temperature > 0, op, ": temperature must be positive, got ", temperature);
  BitQuantizeArguments a;
  a.x = torch::stable::contiguous(x);
  a.num_bits = x.size(-1);
  a.num_rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) {
    a.row_shape.push_back(x.size(i));
    a.num_rows *= x.size(i);
  }
  a.temperature = temperature;
  a.compute = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return a;
}

inline BitQuantizeArguments prepare(const Tensor& x, double temperature) {
  BitQuantizeArguments a = check_bits("bit_quantize", x, temperature);
  a.codes = torch::stable::empty_like(a.x);
  a.ids = torch::stable::new_empty(a.x, a.row_shape, torch::headeronly::ScalarType::Long);
  a.entropy = torch::stable::new_empty(a.x, a.row_shape, a.compute);
  a.commitment = torch::stable::new_empty(a.x, a.row_shape, a.compute);
  return a;
}

// An optional gradient: contiguous, checked, or nothing.
inline std::optional<Tensor> check_grad(const char* name, const std::optional<Tensor>& grad, const Tensor& x,
                                        const std::vector<int64_t>& shape,
                                        torch::headeronly::ScalarType dtype) {
  if (!grad) return std::nullopt;
  bool same = grad->dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) same = grad->size(static_cast<int64_t>(i)) == shape[i];
  PYRAMID_CHECK(same, "bit_quantize_backward: ", name, " does not fit x ", shape_of(x), ", got ", shape_of(*grad));
  PYRAMID_CHECK(grad->scalar_type() == dtype, "bit_quantize_backward: ", name, " must be ",
                torch::headeronly::toString(dtype), ", got ", dtype_of(*grad));
  PYRAMID_CHECK(grad->device() == x.device(), "bit_quantize_backward: ", name, " and x must be on one device");
  return torch::stable::contiguous(*grad);
}

struct BitQuantizeGradients {
  std::optional<Tensor> codes, entropy, commitment;
};

inline BitQuantizeGradients check_grads(const BitQuantizeArguments& a, const std::optional<Tensor>& grad_codes,
                                        const std::optional<Tensor>& grad_entropy,
                                        const std::optional<Tensor>& grad_commitment) {
  std::vector<int64_t> shape = a.row_shape;
  shape.push_back(a.num_bits);
  return {check_grad("grad_codes", grad_codes, a.x, shape, a.x.scalar_type()),
          check_grad("grad_entropy", grad_entropy, a.x, a.row_shape, a.compute),
          check_grad("grad_commitment", grad_commitment, a.x, a.row_shape, a.compute)};
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <class T>
kernels::BitQuantizeParams<T> forward_params(const BitQuantizeArguments& a) {
  using C = kernels::compute_t<T>;
  return {static_cast<const T*>(a.x.const_data_ptr()),
          a.num_rows,
          a.num_bits,
          a.temperature,
          static_cast<T*>(a.codes.mutable_data_ptr()),
          static_cast<int64_t*>(a.ids.mutable_data_ptr()),
          static_cast<C*>(a.entropy.mutable_data_ptr()),
          static_cast<C*>(a.commitment.mutable_data_ptr())};
}

template <class T>
kernels::BitQuantizeBackwardParams<T> backward_params(const BitQuantizeArguments& a, const BitQuantizeGradients& grads,
                                                      const Tensor& grad_x) {
  using C = kernels::compute_t<T>;
  return {static_cast<const T*>(a.x.const_data_ptr()),
          a.num_rows,
          a.num_bits,
          a.temperature,
          data_or_null<T>(grads.codes),
          data_or_null<C>(grads.entropy),
          data_or_null<C>(grads.commitment),
          static_cast<T*>(grad_x.mutable_data_ptr())};
}

}  // namespace pyramid::ops
