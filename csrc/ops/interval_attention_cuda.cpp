// interval_attention and its backward, CUDA: device guard, current stream, workspaces. The values of the intervals are
// looked at on the device (kernels/interval_attention_intervals_cuda.cu), so nothing here waits for it.
#include "ops/interval_attention.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "ops/cuda_stream.h"

namespace pyramid::ops {
namespace {

using kernels::ceil_div;
using torch::headeronly::ScalarType;

struct Intervals {
  Tensor spans;  // (B or 1, S, 4) int32
  Tensor hulls;  // (B or 1, ceil(S / kHullRows), 4) int32, backward
};

template <class Integer>
void read_intervals(const IntervalAttentionArguments& a, const Intervals& to, bool hulls, cudaStream_t stream) {
  const kernels::IntervalsCudaParams<Integer> p{static_cast<const Integer*>(a.intervals.const_data_ptr()),
                                                a.intervals.size(0),
                                                a.shape.num_queries,
                                                a.shape.num_keys,
                                                static_cast<int32_t*>(to.spans.mutable_data_ptr()),
                                                hulls ? static_cast<int32_t*>(to.hulls.mutable_data_ptr()) : nullptr};
  PYRAMID_CUDA_CHECK("interval_attention", kernels::read_intervals_cuda(p, stream));
}

Intervals read_intervals(const IntervalAttentionArguments& a, bool hulls, cudaStream_t stream) {
  const auto integers = [&](int64_t rows) {
    return torch::stable::new_empty(a.intervals, {a.intervals.size(0), rows, 4}, ScalarType::Int);
  };
  const Intervals to{integers(a.shape.num_queries),
                     integers(hulls ? ceil_div(a.shape.num_queries, kernels::kHullRows) : 0)};
  if (a.intervals.scalar_type() == ScalarType::Long)
    read_intervals<int64_t>(a, to, hulls, stream);
  else
    read_intervals<int32_t>(a, to, hulls, stream);
  return to;
}

std::tuple<Tensor, Tensor> interval_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const Tensor& intervals, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  const IntervalAttentionArguments a = check_attention("interval_attention", q, k, v, intervals, scale);
  const kernels::IntervalAttentionShape& s = a.shape;
  const cudaStream_t stream = current_stream(a.q);
  const Intervals read = read_intervals(a, false, stream);
  const Tensor out = new_out(a), logsumexp = new_row_numbers(a, a.compute);
  const int64_t slices = kernels::interval_attention_slices(s), partial = slices > 1 ? slices : 0;
  const Tensor partial_out =
      torch::stable::new_empty(a.q, {partial, s.batch, s.heads, s.num_queries, s.value_dim}, a.compute);
  const Tensor partial_logsumexp =
      torch::stable::new_empty(a.q, {partial, s.batch, s.heads, s.num_queries}, a.compute);
  PYRAMID_DISPATCH_FLOATING("interval_attention", q, [&] {
    using C = kernels::compute_t<element_t>;
    const kernels::IntervalAttentionSplitParams<element_t> p{
        forward_params<element_t>(a, read.spans, out, logsumexp), static_cast<C*>(partial_out.mutable_data_ptr()),
        static_cast<C*>(partial_logsumexp.mutable_data_ptr())};
    PYRAMID_CUDA_CHECK("interval_attention", kernels::interval_attention_cuda(p, stream));
  });
  return {out, logsumexp};
}

std::tuple<Tensor, Tensor, Tensor> interval_attention_backward(const Tensor& grad_out, const Tensor& q,
                                                               const Tensor& k, const Tensor& v,
                                                               const Tensor& intervals, const Tensor& out,
                                                               const Tensor& logsumexp, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  const IntervalAttentionArguments a = check_attention("interval_attention_backward", q, k, v, intervals, scale);
  const IntervalAttentionGradients g = prepare_backward(a, grad_out, out, logsumexp, a.compute);
  const cudaStream_t stream = current_stream(a.q);
  const Intervals read = read_intervals(a, true, stream);
  PYRAMID_DISPATCH_FLOATING("interval_attention_backward", q, [&] {
    const kernels::IntervalAttentionCudaBackwardParams<element_t> p{
        backward_params<element_t>(a, read.spans, g), static_cast<const int32_t*>(read.hulls.const_data_ptr())};
    PYRAMID_CUDA_CHECK("interval_attention_backward", kernels::interval_attention_backward_cuda(p, stream));
  });
  return {g.grad_q, g.grad_k, g.grad_v};
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CUDA, m) {
  m.impl("interval_attention", TORCH_BOX(&pyramid::ops::interval_attention));
  m.impl("interval_attention_backward", TORCH_BOX(&pyramid::ops::interval_attention_backward));
}
