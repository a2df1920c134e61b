// nearest_code: the checks and allocations that CPU and CUDA share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "check.h"

namespace pyramid::ops {

struct NearestCodeArguments {
  torch::stable::Tensor z;         // (N, D) contiguous; float32 or float64 where it was asked to be widened
  torch::stable::Tensor codebook;  // (K, D) the same
  torch::stable::Tensor ids;       // z's shape without the last axis, int64
  torch::stable::Tensor distance;  // the same, float32 or float64
  int64_t num_rows, num_codes, dim;
  bool is_double;
};

inline NearestCodeArguments prepare(const torch::stable::Tensor& z,
                                    const torch::stable::Tensor& codebook, bool widened = true) {
  using torch::headeronly::ScalarType;
  PYRAMID_CHECK(z.dim() >= 1 && codebook.dim() == 2 && z.size(-1) == codebook.size(1) && z.size(-1) > 0,
                "nearest_code: z must be (..., D) and codebook (K, D) with D > 0, got ", shape_of(z), " and ",
                shape_of(codebook));
  PYRAMID_CHECK(codebook.size(0) > 0, "nearest_code: codebook has no codes");
  PYRAMID_CHECK_SAME_DTYPE("nearest_code", z, codebook);
  PYRAMID_CHECK_SAME_DEVICE("nearest_code", z, codebook);
  const ScalarType dtype = z.scalar_type();
  PYRAMID_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                    dtype == ScalarType::BFloat16,
                "nearest_code: z must be float32, float64, bfloat16 or float16, got ", dtype_of(z));

  NearestCodeArguments a;
  a.is_double = dtype == ScalarType::Double;
  const ScalarType compute = a.is_double ? ScalarType::Double : ScalarType::Float;
  const auto laid_out = [&](const torch::stable::Tensor& x) {
    return torch::stable::contiguous(widened ? torch::stable::to(x, compute) : x);
  };
  a.z = laid_out(z);
  a.codebook = laid_out(codebook);
  std::vector<int64_t> shape;
  a.num_rows = 1;
  for (int64_t i = 0; i + 1 < z.dim(); ++i) {
    shape.push_back(z.size(i));
    a.num_rows *= z.size(i);
  }
  a.num_codes = codebook.size(0);
  a.dim = codebook.size(1);
  a.ids = torch::stable::new_empty(a.z, shape, ScalarType::Long);
  a.distance = torch::stable::new_empty(a.z, shape, compute);
  return a;
}

// Any centre is right; the mean of the codes makes the error bound tight.
inline torch::stable::Tensor mean_code(const torch::stable::Tensor& codebook) {
  const std::vector<int64_t> rows{0};
  const torch::stable::Tensor sum = torch::stable::sum(codebook, rows);
  const torch::stable::Tensor zero = torch::stable::new_zeros(sum, {sum.size(0)});
  return torch::stable::subtract(zero, sum, -1.0 / static_cast<double>(codebook.size(0)));
}

}  // namespace pyramid::ops
