// nearest_code, CUDA: checks, workspace, device guard, current stream.
#include "ops/nearest_code.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "kernels/nearest_code.h"
#include "ops/cuda_stream.h"

namespace pyramid::ops {
namespace {

using kernels::ceil_div;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kWorkspaceFloats = 1 << 24;  // 64 MiB of minima at a time

void run_float(const NearestCodeArguments& a, cudaStream_t stream) {
  const int64_t buckets = ceil_div(a.num_codes, kernels::kCudaBucket);
  PYRAMID_CHECK(buckets <= 4 * 65535, "nearest_code: at most 8388480 codes on CUDA, got ", a.num_codes);
  const auto workspace = [&](int64_t count) { return torch::stable::new_empty(a.z, {count}, ScalarType::Float); };
  const int64_t rows_at_a_time = std::min(a.num_rows, std::max<int64_t>(1024, kWorkspaceFloats / buckets));
  const Tensor center = mean_code(a.codebook), centered = workspace(a.num_codes * a.dim);
  const Tensor half_norm = workspace(a.num_codes), code_norm = workspace(a.num_codes);
  const Tensor bucket_norm = workspace(buckets), bucket_min = workspace(rows_at_a_time * buckets);
  const Tensor row_norm = workspace(a.num_rows);

  kernels::NearestCodeParams p{};
  p.z = static_cast<const float*>(a.z.const_data_ptr());
  p.codebook = static_cast<const float*>(a.codebook.const_data_ptr());
  p.center = static_cast<const float*>(center.const_data_ptr());
  p.num_rows = a.num_rows;
  p.num_codes = a.num_codes;
  p.dim = a.dim;
  p.ids = static_cast<int64_t*>(a.ids.mutable_data_ptr());
  p.distance = static_cast<float*>(a.distance.mutable_data_ptr());
  p.half_norm = static_cast<float*>(half_norm.mutable_data_ptr());
  p.code_norm = static_cast<float*>(code_norm.mutable_data_ptr());
  p.centered = static_cast<float*>(centered.mutable_data_ptr());
  p.bucket_norm = static_cast<float*>(bucket_norm.mutable_data_ptr());
  p.bucket_min = static_cast<float*>(bucket_min.mutable_data_ptr());
  p.row_norm = static_cast<float*>(row_norm.mutable_data_ptr());
  p.rows_at_a_time = rows_at_a_time;
  PYRAMID_CUDA_CHECK("nearest_code", kernels::nearest_code_cuda(p, stream));
}

void run_double(const NearestCodeArguments& a, cudaStream_t stream) {
  const kernels::NearestCodeDoubleParams p{static_cast<const double*>(a.z.const_data_ptr()),
                                           static_cast<const double*>(a.codebook.const_data_ptr()),
                                           a.num_rows,
                                           a.num_codes,
                                           a.dim,
                                           static_cast<int64_t*>(a.ids.mutable_data_ptr()),
                                           static_cast<double*>(a.distance.mutable_data_ptr())};
  PYRAMID_CUDA_CHECK("nearest_code", kernels::nearest_code_double_cuda(p, stream));
}

std::tuple<Tensor, Tensor> nearest_code(const Tensor& z, const Tensor& codebook) {
  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  const NearestCodeArguments a = prepare(z, codebook);
  if (a.num_rows > 0) a.is_double ? run_double(a, current_stream(a.z)) : run_float(a, current_stream(a.z));
  return {a.distance, a.ids};
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CUDA, m) {
  m.impl("nearest_code", TORCH_BOX(&pyramid::ops::nearest_code));
}
