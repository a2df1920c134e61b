// code_logsumexp: the checks and allocations that CPU and CUDA share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "check.h"
#include "dispatch.h"
#include "kernels/code_logsumexp.h"

namespace pyramid::ops {

using torch::stable::Tensor;

struct CodeLogsumexpArguments {
  Tensor z;         // (..., D) contiguous
  Tensor codebook;  // (K, D) contiguous
  Tensor center;    // (D,) the mean of the codes
  int64_t num_rows, num_codes, dim;
  double tau;
  std::vector<int64_t> row_shape;
  torch::headeronly::ScalarType compute;
};

inline CodeLogsumexpArguments check_codes(const char* op, const Tensor& z, const Tensor& codebook, double tau) {
  using torch::headeronly::ScalarType;
  PYRAMID_CHECK(z.dim() >= 1 && codebook.dim() == 2 && z.size(-1) == codebook.size(1) && z.size(-1) > 0, op,
                ": z must be (..., D) and codebook (K, D) with D > 0, got ", shape_of(z), " and ", shape_of(codebook));
  PYRAMID_CHECK(codebook.size(0) > 0, op, ": codebook has no codes");
  PYRAMID_CHECK(z.scalar_type() == codebook.scalar_type(), op, ": z and codebook must have one dtype, got ",
                dtype_of(z), " and ", dtype_of(codebook));
  PYRAMID_CHECK(z.device() == codebook.device(), op, ": z and codebook must be on one device");
  PYRAMID_CHECK(tau > 0, op, ": tau must be positive, got ", tau);
  CodeLogsumexpArguments a;
  a.z = torch::stable::contiguous(z);
  a.codebook = torch::stable::contiguous(codebook);
  a.num_rows = 1;
  for (int64_t i = 0; i + 1 < z.dim(); ++i) {
    a.row_shape.push_back(z.size(i));
    a.num_rows *= z.size(i);
  }
  a.num_codes = codebook.size(0);
  a.dim = codebook.size(1);
  a.tau = tau;
  a.compute = z.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  // Any centre is right; the mean of the codes makes less cancel.
  const std::vector<int64_t> rows{0};
  const Tensor sum = torch::stable::sum(a.codebook, rows, false, a.compute);
  const Tensor zero = torch::stable::new_zeros(sum, {a.dim});
  a.center = torch::stable::subtract(zero, sum, -1.0 / static_cast<double>(a.num_codes));
  return a;
}

struct CodeLogsumexpOutputs {
  Tensor logsumexp;  // (...)
  Tensor pull;       // (..., D)
};

inline CodeLogsumexpOutputs new_outputs(const CodeLogsumexpArguments& a) {
  std::vector<int64_t> shape = a.row_shape;
  const Tensor logsumexp = torch::stable::new_empty(a.z, shape, a.compute);
  shape.push_back(a.dim);
  return {logsumexp, torch::stable::new_empty(a.z, shape, a.compute)};
}

// grad and logsumexp of the backward: contiguous, one number a row.
inline Tensor check_row_numbers(const char* name, const Tensor& tensor, const CodeLogsumexpArguments& a) {
  bool same = tensor.dim() == static_cast<int64_t>(a.row_shape.size());
  for (size_t i = 0; same && i < a.row_shape.size(); ++i)
    same = tensor.size(static_cast<int64_t>(i)) == a.row_shape[i];
  PYRAMID_CHECK(same, "code_logsumexp_backward: ", name, " does not fit z ", shape_of(a.z), ", got ", shape_of(tensor));
  PYRAMID_CHECK(tensor.scalar_type() == a.compute, "code_logsumexp_backward: ", name, " must be ",
                torch::headeronly::toString(a.compute), ", got ", dtype_of(tensor));
  PYRAMID_CHECK(tensor.device() == a.z.device(), "code_logsumexp_backward: ", name, " and z must be on one device");
  return torch::stable::contiguous(tensor);
}

template <class T>
kernels::CodeLogsumexpParams<T> forward_params(const CodeLogsumexpArguments& a, const CodeLogsumexpOutputs& out) {
  using C = kernels::compute_t<T>;
  return {static_cast<const T*>(a.z.const_data_ptr()),
          static_cast<const T*>(a.codebook.const_data_ptr()),
          static_cast<const C*>(a.center.const_data_ptr()),
          a.num_rows,
          a.num_codes,
          a.dim,
          a.tau,
          static_cast<C*>(out.logsumexp.mutable_data_ptr()),
          static_cast<C*>(out.pull.mutable_data_ptr())};
}

template <class T>
kernels::CodeLogsumexpBackwardParams<T> backward_params(const CodeLogsumexpArguments& a, const Tensor& grad,
                                                        const Tensor& logsumexp, const Tensor& grad_codebook) {
  using C = kernels::compute_t<T>;
  return {static_cast<const C*>(grad.const_data_ptr()),
          static_cast<const T*>(a.z.const_data_ptr()),
          static_cast<const T*>(a.codebook.const_data_ptr()),
          static_cast<const C*>(a.center.const_data_ptr()),
          static_cast<const C*>(logsumexp.const_data_ptr()),
          a.num_rows,
          a.num_codes,
          a.dim,
          a.tau,
          static_cast<T*>(grad_codebook.mutable_data_ptr())};
}

}  // namespace pyramid::ops
