"""Rows of interval_attention and its backward."""

from __future__ import annotations

import torch
from ops.case import Make, Op, Sample, randn
from torch import Tensor

from pyramid import ops
from pyramid.ops import reference


def intervals_of(batch: int, queries: int, keys: int, device: torch.device) -> Tensor:
    """At random: they overlap, touch, lie apart or are empty; one query sees nothing."""
    intervals = torch.randint(0, keys + 1, (batch, queries, 2, 2)).sort(-1).values.flatten(2)
    intervals[:1, :1] = torch.tensor([keys // 2, keys // 2, 0, 0])
    return intervals.to(device)


def heads(
    batch: int, q_heads: int, kv_heads: int, queries: int, keys: int, dim: int, value_dim: int, shared: bool = False
) -> Make:
    def make(dtype, device):
        return (
            randn((batch, q_heads, queries, dim), dtype, device),
            randn((batch, kv_heads, keys, dim), dtype, device),
            randn((batch, kv_heads, keys, value_dim), dtype, device),
            intervals_of(1 if shared else batch, queries, keys, device),
            dim**-0.5,
        )

    return make


def level_blocks(dtype, device):
    """Blocks of levels: each sees all before it and itself, as the language model's do."""
    counts = [1, 4, 16, 64] * 2
    stop = torch.tensor(counts).cumsum(0).repeat_interleave(torch.tensor(counts))
    zero = torch.zeros_like(stop)
    q, k, v = (randn((1, 2, len(stop), 32), dtype, device) for _ in range(3))
    return q, k, v, torch.stack([zero, stop, zero, zero], -1)[None].to(device), 0.2


def large_scores(dtype, device):
    q, k, v, intervals, _ = heads(2, 4, 4, 90, 110, 16, 16)(dtype, device)
    return q, k, v, intervals, 12.0


def rows_of(q):
    """The dtype of logsumexp."""
    return torch.float32 if q.is_cuda and q.dtype != torch.float64 else torch.float64


def logsumexp_of(q, k, intervals, scale):
    return reference.interval_logsumexp(q, k, intervals, scale).detach().to(rows_of(q))


def narrow_rows(grad_out, q, k, v, intervals, out, logsumexp, scale):
    narrow = logsumexp if q.dtype == torch.float64 else logsumexp.float()
    return grad_out, q, k, v, intervals, out, narrow, scale


def wide_rows(results):
    out, logsumexp = results
    return out, logsumexp.double()


def with_out(make: Make) -> Make:
    def make_all(dtype, device):
        q, k, v, intervals, scale = make(dtype, device)
        out = reference.interval_attention(*(x.double() for x in (q, k, v)), intervals, scale)
        lse = reference.interval_logsumexp(q.double(), k.double(), intervals, scale)
        return randn(tuple(out.shape), dtype, device), q, k, v, intervals, out.to(dtype), lse.to(rows_of(q)), scale

    return make_all


def native(q, k, v, intervals, scale):
    return torch.ops.pyramid.interval_attention.default(q, k, v, intervals, scale)


def plain(q, k, v, intervals, scale):
    return (
        reference.interval_attention(q, k, v, intervals, scale),
        logsumexp_of(q, k, intervals, scale),
    )


def plain_backward(grad_out, q, k, v, intervals, out, logsumexp, scale):
    """What autograd makes of plain PyTorch at the same precision."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    with torch.enable_grad():
        out = reference.interval_attention(q, k, v, intervals, scale)
    return torch.autograd.grad(out, (q, k, v), grad_out.to(out.dtype), materialize_grads=True)


def _probabilities(q, k, intervals, scale):
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    seen = reference._seen(intervals, k.shape[2])
    scores = (q.float() @ k.float().mT * scale).masked_fill(~seen, -torch.inf)
    return torch.softmax(scores, -1).masked_fill(~seen, 0.0)


def rounded_backward(grad_out, q, k, v, intervals, out, logsumexp, scale):
    """With the probabilities and the gradient of the scores in q's dtype where they are multiplied, sums in float32.

    These are the roundings of attention on 16-bit tensor cores, those of SDPA included; where SDPA has no kernel for
    the sizes, as with D != Dv, it computes in float32 instead.
    """

    def wide(x):
        return x.to(q.dtype).float()

    def of_heads(x):
        return x.unflatten(1, (k.shape[1], -1)).sum(2).to(q.dtype)

    p, groups = _probabilities(q, k, intervals, scale), q.shape[1] // k.shape[1]
    by_p = grad_out.float() @ v.float().repeat_interleave(groups, 1).mT
    by_scores = wide(p * (by_p - (p * by_p).sum(-1, keepdim=True)))
    by_q = by_scores @ k.float().repeat_interleave(groups, 1) * scale
    by_k = by_scores.mT @ q.float() * scale
    return by_q.to(q.dtype), of_heads(by_k), of_heads(wide(p).mT @ grad_out.float())


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, intervals, scale):
        ctx.save_for_backward(q, k, v, intervals)
        ctx.scale = scale
        p, groups = _probabilities(q, k, intervals, scale), q.shape[1] // k.shape[1]
        return (p.to(q.dtype).float() @ v.float().repeat_interleave(groups, 1)).to(q.dtype)

    @staticmethod
    def backward(ctx, grad_out):
        return *rounded_backward(grad_out, *ctx.saved_tensors, None, None, ctx.scale), None, None


def rounded(q, k, v, intervals, scale):
    return (
        Rounded.apply(q, k, v, intervals, scale),
        logsumexp_of(q, k, intervals, scale),
    )


def native_backward(*args):
    return torch.ops.pyramid.interval_attention_backward.default(*args)


def call(device, q=(1, 4, 5, 6), k=(1, 2, 9, 6), v=(1, 2, 9, 3), intervals=(1, 5, 4), kind=torch.int64, raw=False):
    q, k, v = (torch.zeros(shape, device=device) for shape in (q, k, v))
    intervals = torch.zeros(intervals, dtype=kind, device=device)
    return native(q, k, v, intervals, 1.0) if raw else ops.interval_attention(q, k, v, intervals)


def out_of_order(device, bad, raw=False):
    q, k, v = (torch.zeros(2, 1, 3, 4) for _ in range(3))
    intervals = torch.zeros(2, 3, 4, dtype=torch.int64)
    intervals[1, 2] = torch.tensor(bad)
    return native(q, k, v, intervals, 1.0) if raw else ops.interval_attention(q, k, v, intervals)


SAMPLES = [
    ("one", heads(1, 1, 1, 1, 1, 1, 1)),
    ("small", heads(2, 4, 2, 6, 9, 4, 3)),
    ("tail of every tile", heads(2, 2, 2, 51, 99, 33, 40)),
    ("shared intervals", heads(2, 3, 1, 70, 130, 48, 64, shared=True)),
    ("few queries", heads(2, 2, 1, 2, 300, 64, 72)),
    ("wide heads", heads(1, 2, 1, 30, 50, 128, 128)),
    ("level blocks", level_blocks),
    ("large scores", large_scores),
]

INTERVAL_ATTENTION = Op(
    name="interval_attention",
    native=native,
    reference=plain,
    on_tensor_cores=rounded,
    from_cuda=wide_rows,
    samples=[Sample(name, make) for name, make in SAMPLES],
    empty=Sample("no keys", heads(1, 2, 1, 3, 0, 4, 5)),
    differentiable=(0,),
    gradcheck=lambda *args: native(*args)[0],
    errors=[
        ("heads", ValueError, "H a multiple of Hkv", lambda device: call(device, q=(1, 3, 5, 6))),
        ("width", ValueError, r"got \(1, 4, 5, 7\)", lambda device: call(device, q=(1, 4, 5, 7))),
        ("intervals", ValueError, r"\(1 or 1, 5, 4\), got \(1, 4, 4\)",
         lambda device: call(device, intervals=(1, 4, 4))),
        ("float intervals", TypeError, "integers, got torch.float32", lambda device: call(device, kind=torch.float32)),
        ("two dtypes", TypeError, "one dtype among.*got torch.float32, torch.float64 and torch.float32",
         lambda device: ops.interval_attention(
             torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1).double(), torch.zeros(1, 1, 1, 1),
             torch.zeros(1, 1, 4, dtype=torch.int64))),
        ("out of order", ValueError, r"0 <= a <= b <= 3 .* got \[2, 1, 0, 0\] for query 2 of batch 1",
         lambda device: out_of_order(device, [2, 1, 0, 0])),
        ("raw: heads", RuntimeError, "interval_attention: expected q .* H a multiple of Hkv",
         lambda device: call(device, q=(1, 3, 5, 6), raw=True)),
        ("raw: intervals", RuntimeError, r"\(1 or 1, 5, 4\), got \(1, 4, 4\)",
         lambda device: call(device, intervals=(1, 4, 4), raw=True)),
        ("raw: kind", RuntimeError, "intervals must be int32 or int64, got Float",
         lambda device: call(device, kind=torch.float32, raw=True)),
        ("raw: out of order", RuntimeError, r"got \[0, 1, 0, 4\] for query 2 of batch 1",
         lambda device: out_of_order(device, [0, 1, 0, 4], raw=True)),
    ],
)  # fmt: skip

BACKWARD = Op(
    name="interval_attention_backward",
    native=native_backward,
    reference=plain_backward,
    on_tensor_cores=rounded_backward,
    to_cuda=narrow_rows,
    samples=[Sample(name, with_out(make)) for name, make in SAMPLES],
    empty=Sample("no queries", with_out(heads(1, 2, 1, 0, 3, 4, 5, shared=True))),
    errors=[
        ("shape", RuntimeError, r"must be \(B, H, S, Dv\), the same and \(B, H, S\), got \(1, 1, 1, 2\)",
         lambda device: native_backward(
             torch.zeros(1, 1, 1, 2), *[torch.zeros(1, 1, 1, 1)] * 3, torch.zeros(1, 1, 4, dtype=torch.int64),
             torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1), 1.0)),
        ("dtype", RuntimeError, "logsumexp Double, got Float, Float and Float",
         lambda device: native_backward(
             *[torch.zeros(1, 1, 1, 1)] * 4, torch.zeros(1, 1, 4, dtype=torch.int64),
             torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1), 1.0)),
    ],
)  # fmt: skip

OPS = (INTERVAL_ATTENTION, BACKWARD)
