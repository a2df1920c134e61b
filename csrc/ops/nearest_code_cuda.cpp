// nearest_code, CUDA: checks, workspace, device guard, current stream.
#include "ops/nearest_code.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "dispatch.h"
#include "kernels/nearest_code.h"
#include "ops/cuda_stream.h"

namespace pyramid::ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor mean_code(const Tensor& codebook) {
  const std::vector<int64_t> rows{0};
  const Tensor sum = torch::stable::sum(codebook, rows, false, ScalarType::Float);
  const Tensor zero = torch::stable::new_zeros(sum, {sum.size(0)});
  return torch::stable::subtract(zero, sum, -1.0 / static_cast<double>(codebook.size(0)));
}

template <class T>
void run(const NearestCodeArguments& a, cudaStream_t stream) {
  const auto nothing_or = [&](auto&& make) {  // float64 is ranked outright
    return a.is_double ? torch::stable::new_empty(a.z, {0}, ScalarType::Byte) : make();
  };
  const Tensor center = nothing_or([&] { return mean_code(a.codebook); });
  const Tensor workspace = nothing_or([&] {
    return torch::stable::new_empty(a.z, {kernels::nearest_code_cuda_bytes(a.num_rows, a.num_codes, a.dim)},
                                    ScalarType::Byte);
  });
  const kernels::NearestCodeCudaParams<T> p{static_cast<const T*>(a.z.const_data_ptr()),
                                            static_cast<const T*>(a.codebook.const_data_ptr()),
                                            static_cast<const float*>(center.const_data_ptr()),
                                            a.num_rows,
                                            a.num_codes,
                                            a.dim,
                                            static_cast<int64_t*>(a.ids.mutable_data_ptr()),
                                            static_cast<kernels::compute_t<T>*>(a.distance.mutable_data_ptr()),
                                            static_cast<char*>(workspace.mutable_data_ptr())};
  PYRAMID_CUDA_CHECK("nearest_code", kernels::nearest_code_cuda(p, stream));
}

std::tuple<Tensor, Tensor> nearest_code(const Tensor& z, const Tensor& codebook) {
  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  const NearestCodeArguments a = prepare(z, codebook);
  if (a.num_rows == 0) return {a.distance, a.ids};
  PYRAMID_DISPATCH_FLOATING("nearest_code", z, [&] { run<element_t>(a, current_stream(a.z)); });
  return {a.distance, a.ids};
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CUDA, m) {
  m.impl("nearest_code", TORCH_BOX(&pyramid::ops::nearest_code));
}
