// bit_quantize and its backward, CPU: rows are shared out among torch's threads.
#include "ops/bit_quantize.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

namespace pyramid::ops {
namespace {

int64_t grain(int64_t num_bits) { return std::max<int64_t>(1, 16384 / num_bits); }

std::tuple<Tensor, Tensor, Tensor, Tensor> bit_quantize(const Tensor& x, double temperature) {
  const BitQuantizeArguments a = prepare(x, temperature);
  PYRAMID_DISPATCH_FLOATING("bit_quantize", x, [&] {
    const auto p = forward_params<element_t>(a);
    torch::stable::parallel_for(0, a.num_rows, grain(a.num_bits), [&](int64_t begin, int64_t end) {
      PYRAMID_BEST_ISA(bit_quantize_rows<element_t>)(p, begin, end);
    });
  });
  return {a.codes, a.ids, a.entropy, a.commitment};
}

Tensor bit_quantize_backward(const Tensor& x, double temperature, const std::optional<Tensor>& grad_codes,
                             const std::optional<Tensor>& grad_entropy, const std::optional<Tensor>& grad_commitment) {
  const BitQuantizeArguments a = check_bits("bit_quantize_backward", x, temperature);
  const BitQuantizeGradients grads = check_grads(a, grad_codes, grad_entropy, grad_commitment);
  const Tensor grad_x = torch::stable::empty_like(a.x);
  PYRAMID_DISPATCH_FLOATING("bit_quantize_backward", x, [&] {
    const auto p = backward_params<element_t>(a, grads, grad_x);
    torch::stable::parallel_for(0, a.num_rows, grain(a.num_bits), [&](int64_t begin, int64_t end) {
      PYRAMID_BEST_ISA(bit_quantize_backward_rows<element_t>)(p, begin, end);
    });
  });
  return grad_x;
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CPU, m) {
  m.impl("bit_quantize", TORCH_BOX(&pyramid::ops::bit_quantize));
  m.impl("bit_quantize_backward", TORCH_BOX(&pyramid::ops::bit_quantize_backward));
}
