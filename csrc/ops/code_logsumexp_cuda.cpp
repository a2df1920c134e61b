// code_logsumexp and its backward, CUDA: device guard, current stream, workspace.
#include "ops/code_logsumexp.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "ops/cuda_stream.h"

namespace pyramid::ops {
namespace {

using torch::headeronly::ScalarType;

Tensor workspace(const CodeLogsumexpArguments& a, int64_t bytes) {
  return torch::stable::new_empty(a.z, {a.compute == ScalarType::Double ? 0 : bytes}, ScalarType::Byte);
}

std::tuple<Tensor, Tensor> code_logsumexp(const Tensor& z, const Tensor& codebook, double tau) {
  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  const CodeLogsumexpArguments a = check_codes("code_logsumexp", z, codebook, tau);
  const CodeLogsumexpOutputs out = new_outputs(a);
  if (a.num_rows == 0) return {out.logsumexp, out.pull};
  const Tensor room = workspace(a, kernels::code_logsumexp_cuda_bytes(a.num_rows, a.num_codes, a.dim));
  PYRAMID_DISPATCH_FLOATING("code_logsumexp", z, [&] {
    PYRAMID_CUDA_CHECK("code_logsumexp",
                       kernels::code_logsumexp_cuda(forward_params<element_t>(a, out),
                                                    static_cast<char*>(room.mutable_data_ptr()), current_stream(a.z)));
  });
  return {out.logsumexp, out.pull};
}

Tensor code_logsumexp_backward(const Tensor& grad, const Tensor& z, const Tensor& codebook, const Tensor& logsumexp,
                               double tau) {
  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  const CodeLogsumexpArguments a = check_codes("code_logsumexp_backward", z, codebook, tau);
  const Tensor rows_grad = check_row_numbers("grad", grad, a), rows = check_row_numbers("logsumexp", logsumexp, a);
  const Tensor grad_codebook = torch::stable::empty_like(a.codebook);
  const Tensor room = workspace(a, kernels::code_logsumexp_backward_cuda_bytes(a.num_rows, a.num_codes, a.dim));
  PYRAMID_DISPATCH_FLOATING("code_logsumexp_backward", z, [&] {
    PYRAMID_CUDA_CHECK("code_logsumexp_backward",
                       kernels::code_logsumexp_backward_cuda(
                           backward_params<element_t>(a, rows_grad, rows, grad_codebook),
                           static_cast<char*>(room.mutable_data_ptr()), current_stream(a.z)));
  });
  return grad_codebook;
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CUDA, m) {
  m.impl("code_logsumexp", TORCH_BOX(&pyramid::ops::code_logsumexp));
  m.impl("code_logsumexp_backward", TORCH_BOX(&pyramid::ops::code_logsumexp_backward));
}
