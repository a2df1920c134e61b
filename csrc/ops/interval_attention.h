// interval_attention: the checks and allocations that CPU and CUDA share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <vector>

#include "check.h"
#include "dispatch.h"
#include "kernels/interval_attention.h"

namespace pyramid::ops {

using torch::stable::Tensor;

struct IntervalAttentionArguments {
  Tensor q, k, v;    // last axis contiguous
  Tensor intervals;  // (B or 1, S, 4) contiguous integers; their values are checked by each device's side
  kernels::IntervalAttentionShape shape;
  torch::headeronly::ScalarType compute;
};

inline bool has_shape(const Tensor& tensor, const std::vector<int64_t>& shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) same = tensor.size(static_cast<int64_t>(i)) == shape[i];
  return same;
}

inline Tensor with_contiguous_rows(const Tensor& tensor) {
  return tensor.size(3) == 1 || tensor.stride(3) == 1 ? tensor : torch::stable::contiguous(tensor);
}

inline kernels::HeadStrides head_strides(const Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

inline IntervalAttentionArguments check_attention(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                                                  const Tensor& intervals, double scale) {
  using torch::headeronly::ScalarType;
  PYRAMID_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && q.size(0) == k.size(0) && q.size(0) == v.size(0) &&
                    q.size(3) == k.size(3) && k.size(1) == v.size(1) && k.size(2) == v.size(2) && k.size(1) > 0 &&
                    q.size(1) % k.size(1) == 0 && q.size(3) > 0 && v.size(3) > 0,
                op, ": expected q (B, H, S, D), k (B, Hkv, Skv, D), v (B, Hkv, Skv, Dv), H a multiple of Hkv, got ",
                shape_of(q), ", ", shape_of(k), ", ", shape_of(v));
  PYRAMID_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), op,
                ": q, k and v must have one dtype, got ", dtype_of(q), ", ", dtype_of(k), ", ", dtype_of(v));
  PYRAMID_CHECK(k.device() == q.device() && v.device() == q.device() && intervals.device() == q.device(), op,
                ": q, k, v and intervals must be on one device");
  PYRAMID_CHECK((has_shape(intervals, {q.size(0), q.size(2), 4}) || has_shape(intervals, {1, q.size(2), 4})), op,
                ": expected intervals (B or 1, S, 4) = (", q.size(0), " or 1, ", q.size(2), ", 4), got ",
                shape_of(intervals));
  const ScalarType integer = intervals.scalar_type();
  PYRAMID_CHECK(integer == ScalarType::Int || integer == ScalarType::Long, op,
                ": intervals must be int32 or int64, got ", dtype_of(intervals));
  PYRAMID_CHECK(k.size(2) <= std::numeric_limits<int32_t>::max(), op, ": at most 2^31 - 1 keys, got ", k.size(2));

  IntervalAttentionArguments a;
  a.q = with_contiguous_rows(q);
  a.k = with_contiguous_rows(k);
  a.v = with_contiguous_rows(v);
  a.intervals = torch::stable::contiguous(intervals);
  a.shape = {q.size(0),         q.size(1),         k.size(1),         q.size(2),
             k.size(2),         q.size(3),         v.size(3),         scale,
             head_strides(a.q), head_strides(a.k), head_strides(a.v), intervals.size(0) == 1 ? 0 : 4 * q.size(2)};
  a.compute = q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return a;
}

inline Tensor new_out(const IntervalAttentionArguments& a) {
  const auto& s = a.shape;
  return torch::stable::new_empty(a.q, {s.batch, s.heads, s.num_queries, s.value_dim});
}

inline Tensor new_row_numbers(const IntervalAttentionArguments& a, torch::headeronly::ScalarType dtype) {
  return torch::stable::new_empty(a.q, {a.shape.batch, a.shape.heads, a.shape.num_queries}, dtype);
}

struct IntervalAttentionGradients {
  Tensor grad_out, out, logsumexp;  // contiguous
  Tensor delta;                     // workspace
  Tensor grad_q, grad_k, grad_v;
};

inline IntervalAttentionGradients prepare_backward(const IntervalAttentionArguments& a, const Tensor& grad_out,
                                                   const Tensor& out, const Tensor& logsumexp,
                                                   torch::headeronly::ScalarType dtype_of_rows) {
  const auto& s = a.shape;
  const std::vector<int64_t> rows{s.batch, s.heads, s.num_queries};
  const std::vector<int64_t> outs{s.batch, s.heads, s.num_queries, s.value_dim};
  PYRAMID_CHECK(has_shape(grad_out, outs) && has_shape(out, outs) && has_shape(logsumexp, rows),
                "interval_attention_backward: grad_out, out and logsumexp must be (B, H, S, Dv), the same and (B, H, S), "
                "got ", shape_of(grad_out), ", ", shape_of(out), " and ", shape_of(logsumexp), " for q ", shape_of(a.q));
  PYRAMID_CHECK(grad_out.scalar_type() == a.q.scalar_type() && out.scalar_type() == a.q.scalar_type() &&
                    logsumexp.scalar_type() == dtype_of_rows,
                "interval_attention_backward: grad_out and out must be ", dtype_of(a.q), " and logsumexp ",
                torch::headeronly::toString(dtype_of_rows), ", got ", dtype_of(grad_out), ", ", dtype_of(out), " and ",
                dtype_of(logsumexp));
  PYRAMID_CHECK(grad_out.device() == a.q.device() && out.device() == a.q.device() &&
                    logsumexp.device() == a.q.device(),
                "interval_attention_backward: all tensors must be on one device");
  return {torch::stable::contiguous(grad_out),
          torch::stable::contiguous(out),
          torch::stable::contiguous(logsumexp),
          new_row_numbers(a, a.compute),
          torch::stable::new_empty(a.q, {s.batch, s.heads, s.num_queries, s.dim}),
          torch::stable::new_empty(a.q, {s.batch, s.kv_heads, s.num_keys, s.dim}),
          torch::stable::new_empty(a.q, {s.batch, s.kv_heads, s.num_keys, s.value_dim})};
}

// `intervals` here and below: int32 (B or 1, S, 4) on the device.
template <class T, class Row = kernels::compute_t<T>>
kernels::IntervalAttentionParams<T, Row> forward_params(const IntervalAttentionArguments& a, const Tensor& intervals,
                                                        const Tensor& out, const Tensor& logsumexp) {
  return {a.shape,
          static_cast<const T*>(a.q.const_data_ptr()),
          static_cast<const T*>(a.k.const_data_ptr()),
          static_cast<const T*>(a.v.const_data_ptr()),
          static_cast<const int32_t*>(intervals.const_data_ptr()),
          static_cast<T*>(out.mutable_data_ptr()),
          static_cast<Row*>(logsumexp.mutable_data_ptr())};
}

template <class T, class Row = kernels::compute_t<T>>
kernels::IntervalAttentionBackwardParams<T, Row> backward_params(const IntervalAttentionArguments& a,
                                                                 const Tensor& intervals,
                                                                 const IntervalAttentionGradients& g) {
  return {a.shape,
          static_cast<const T*>(a.q.const_data_ptr()),
          static_cast<const T*>(a.k.const_data_ptr()),
          static_cast<const T*>(a.v.const_data_ptr()),
          static_cast<const int32_t*>(intervals.const_data_ptr()),
          static_cast<const T*>(g.out.const_data_ptr()),
          static_cast<const Row*>(g.logsumexp.const_data_ptr()),
          static_cast<const T*>(g.grad_out.const_data_ptr()),
          static_cast<kernels::compute_t<T>*>(g.delta.mutable_data_ptr()),
          static_cast<T*>(g.grad_q.mutable_data_ptr()),
          static_cast<T*>(g.grad_k.mutable_data_ptr()),
          static_cast<T*>(g.grad_v.mutable_data_ptr())};
}

}  // namespace pyramid::ops
