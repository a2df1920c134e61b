// code_logsumexp and its backward, CPU: rows (backward: codes) are shared out among torch's threads.
#include "ops/code_logsumexp.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "ops/run_tasks.h"

namespace pyramid::ops {
namespace {

std::tuple<Tensor, Tensor> code_logsumexp(const Tensor& z, const Tensor& codebook, double tau) {
  const CodeLogsumexpArguments a = check_codes("code_logsumexp", z, codebook, tau);
  const CodeLogsumexpOutputs out = new_outputs(a);
  const int64_t tasks = kernels::ceil_div(a.num_rows, PYRAMID_BEST_ISA(code_logsumexp_task_rows)());
  PYRAMID_DISPATCH_FLOATING("code_logsumexp", z, [&] {
    const auto p = forward_params<element_t>(a, out);
    run_tasks("code_logsumexp", tasks, [&](int64_t begin, int64_t end) {
      return PYRAMID_BEST_ISA(code_logsumexp_tasks<element_t>)(p, begin, end);
    });
  });
  return {out.logsumexp, out.pull};
}

Tensor code_logsumexp_backward(const Tensor& grad, const Tensor& z, const Tensor& codebook, const Tensor& logsumexp,
                               double tau) {
  const CodeLogsumexpArguments a = check_codes("code_logsumexp_backward", z, codebook, tau);
  const Tensor rows_grad = check_row_numbers("grad", grad, a), rows = check_row_numbers("logsumexp", logsumexp, a);
  const Tensor grad_codebook = torch::stable::empty_like(a.codebook);
  const int64_t tasks = kernels::ceil_div(a.num_codes, PYRAMID_BEST_ISA(code_logsumexp_task_rows)());
  PYRAMID_DISPATCH_FLOATING("code_logsumexp_backward", z, [&] {
    const auto p = backward_params<element_t>(a, rows_grad, rows, grad_codebook);
    run_tasks("code_logsumexp_backward", tasks, [&](int64_t begin, int64_t end) {
      return PYRAMID_BEST_ISA(code_logsumexp_backward_tasks<element_t>)(p, begin, end);
    });
  });
  return grad_codebook;
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CPU, m) {
  m.impl("code_logsumexp", TORCH_BOX(&pyramid::ops::code_logsumexp));
  m.impl("code_logsumexp_backward", TORCH_BOX(&pyramid::ops::code_logsumexp_backward));
}
