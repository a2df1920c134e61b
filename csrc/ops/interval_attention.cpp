// interval_attention and its backward, CPU: the intervals are checked, tasks are shared out among torch's threads.
#include "ops/interval_attention.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "ops/run_tasks.h"

namespace pyramid::ops {
namespace {

using torch::headeronly::ScalarType;

template <class Integer>
void check_and_narrow(const char* op, const Integer* from, int64_t batch, int64_t num_queries, int64_t last,
                      int32_t* to) {
  for (int64_t i = 0; i < batch * num_queries; ++i, from += 4, to += 4) {
    PYRAMID_CHECK(0 <= from[0] && from[0] <= from[1] && from[1] <= last && 0 <= from[2] && from[2] <= from[3] &&
                      from[3] <= last,
                  op, ": expected 0 <= a <= b <= ", last, " and 0 <= c <= d <= ", last, ", got [", from[0], ", ",
                  from[1], ", ", from[2], ", ", from[3], "] for query ", i % num_queries, " of batch ",
                  i / num_queries);
    for (int j = 0; j < 4; ++j) to[j] = static_cast<int32_t>(from[j]);
  }
}

Tensor checked_intervals(const char* op, const IntervalAttentionArguments& a) {
  const Tensor& given = a.intervals;
  const Tensor narrow = torch::stable::new_empty(given, {given.size(0), given.size(1), 4}, ScalarType::Int);
  int32_t* to = static_cast<int32_t*>(narrow.mutable_data_ptr());
  const auto check = [&](auto* from) {
    check_and_narrow(op, from, given.size(0), given.size(1), a.shape.num_keys, to);
  };
  if (given.scalar_type() == ScalarType::Long)
    check(static_cast<const int64_t*>(given.const_data_ptr()));
  else
    check(static_cast<const int32_t*>(given.const_data_ptr()));
  return narrow;
}

std::tuple<Tensor, Tensor> interval_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const Tensor& intervals, double scale) {
  const IntervalAttentionArguments a = check_attention("interval_attention", q, k, v, intervals, scale);
  const Tensor narrow = checked_intervals("interval_attention", a);
  const Tensor out = new_out(a), logsumexp = new_row_numbers(a, ScalarType::Double);
  PYRAMID_DISPATCH_FLOATING("interval_attention", q, [&] {
    const auto p = forward_params<element_t, double>(a, narrow, out, logsumexp);
    run_tasks("interval_attention", PYRAMID_BEST_ISA(interval_attention_num_tasks)(a.shape),
              [&](int64_t begin, int64_t end) {
                return PYRAMID_BEST_ISA(interval_attention_tasks<element_t>)(p, begin, end);
              });
  });
  return {out, logsumexp};
}

std::tuple<Tensor, Tensor, Tensor> interval_attention_backward(const Tensor& grad_out, const Tensor& q,
                                                               const Tensor& k, const Tensor& v,
                                                               const Tensor& intervals, const Tensor& out,
                                                               const Tensor& logsumexp, double scale) {
  const IntervalAttentionArguments a = check_attention("interval_attention_backward", q, k, v, intervals, scale);
  const Tensor narrow = checked_intervals("interval_attention_backward", a);
  const IntervalAttentionGradients g = prepare_backward(a, grad_out, out, logsumexp, ScalarType::Double);
  PYRAMID_DISPATCH_FLOATING("interval_attention_backward", q, [&] {
    const auto p = backward_params<element_t, double>(a, narrow, g);
    run_tasks("interval_attention_backward", PYRAMID_BEST_ISA(interval_attention_backward_num_tasks)(a.shape),
              [&](int64_t begin, int64_t end) {
                return PYRAMID_BEST_ISA(interval_attention_backward_tasks<element_t>)(p, begin, end);
              });
  });
  return {g.grad_q, g.grad_k, g.grad_v};
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CPU, m) {
  m.impl("interval_attention", TORCH_BOX(&pyramid::ops::interval_attention));
  m.impl("interval_attention_backward", TORCH_BOX(&pyramid::ops::interval_attention_backward));
}
