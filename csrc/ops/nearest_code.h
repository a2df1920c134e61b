// nearest_code: the checks and allocations that CPU and CUDA share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "check.h"

namespace pyramid::ops {

struct NearestCodeArguments {
  torch::stable::Tensor z;         // (N, D) contiguous
  torch::stable::Tensor codebook;  // (K, D) the same
  torch::stable::Tensor ids;       // z's shape without the last axis, int64
  torch::stable::Tensor distance;  // the same, float32 or float64
  int64_t num_rows, num_codes, dim;
  bool is_double;
};

inline NearestCodeArguments prepare(const torch::stable::Tensor& z, const torch::stable::Tensor& codebook) {
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
  a.z = torch::stable::contiguous(z);
  a.codebook = torch::stable::contiguous(codebook);
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

}  // namespace pyramid::ops
