"""Attention over two intervals of keys a query: causal, prefix, block, sliding window and packed clips in one op.

Online softmax without the S x Skv matrix (FlashAttention-2, 2307.08691); blocks of keys that no query of a block sees
are skipped. Shapes: q (B, H, S, D), k (B, Hkv, Skv, D), v (B, Hkv, Skv, Dv), intervals (B or 1, S, 4).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyramid.ops import _library, reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def interval_attention(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float | None = None) -> Tensor:
    """Attention in which each query sees the keys [a, b) and [c, d): causal, prefix, block, window and packed in one.

    Args:
        q: (B, H, S, D) float32, float64, bfloat16 or float16, any strides; under autocast its dtype. Sums are in
            float32 (float64 for float64).
        k, v: (B, Hkv, Skv, D) and (B, Hkv, Skv, Dv), same dtype and device, H a multiple of Hkv (grouped heads). S and
            Skv may differ: a cache is k and v with more keys than there are queries.
        intervals: (B or 1, S, 4) integers a, b, c, d with 0 <= a <= b <= Skv and 0 <= c <= d <= Skv, on q's device.
            The two may overlap; a key is seen once. a = b or c = d is an empty interval.
        scale: of the scores; None: 1 / sqrt(D).

    Returns:
        (B, H, S, Dv), dtype of q; zeros where a query sees nothing. Differentiable by q, k and v; a second derivative
        is plain PyTorch and forms the S x Skv matrix.

    Raises:
        ValueError: shapes that don't fit, two devices, intervals that are out of order or out of range (on CUDA a
            device-side assertion, so as not to wait; nothing beyond the keys is read). TypeError: dtypes.
    """
    device = q.device.type
    if torch.is_autocast_enabled(device) and q.dtype in FLOATS and q.dtype != torch.float64:
        # The result has the dtype of autocast, as that of scaled_dot_product_attention. The CPU computes in float32
        # whatever comes, so there nothing is rounded before it has to be.
        dtype = torch.get_autocast_dtype(device)
        inside = torch.float32 if device == "cpu" else dtype
        with torch.autocast(device, enabled=False):
            return interval_attention(q.to(inside), k.to(inside), v.to(inside), intervals, scale).to(dtype)
    _check(q, k, v, intervals)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else float(scale)
    if not _library.use_native(q):
        check_order(intervals, k.shape[2])
        return reference.interval_attention(q, k, v, intervals, scale)
    if intervals.dtype not in (torch.int64, torch.int32):
        intervals = intervals.long()
    op = torch.ops.pyramid.interval_attention.default
    if torch.compiler.is_compiling():
        return op(q, k, v, intervals, scale)[0]
    try:
        return op(q, k, v, intervals, scale)[0]
    except RuntimeError:
        check_order(intervals, k.shape[2])  # the op has looked at the values: say it as ValueError
        raise


def _check(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor) -> None:
    if not (
        q.ndim == k.ndim == v.ndim == 4
        and q.shape[0] == k.shape[0] == v.shape[0]
        and q.shape[3] == k.shape[3] >= 1
        and k.shape[1:3] == v.shape[1:3]
        and v.shape[3] >= 1
        and k.shape[1] > 0
        and q.shape[1] % k.shape[1] == 0
    ):
        raise ValueError(
            "interval_attention: expected q (B, H, S, D), k (B, Hkv, Skv, D), v (B, Hkv, Skv, Dv), "
            f"H a multiple of Hkv, got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if intervals.ndim != 3 or intervals.shape[0] not in (1, q.shape[0]) or intervals.shape[1:] != (q.shape[2], 4):
        raise ValueError(
            f"interval_attention: expected intervals (B or 1, S, 4) = ({q.shape[0]} or 1, {q.shape[2]}, 4), "
            f"got {tuple(intervals.shape)}"
        )
    if q.dtype not in FLOATS or not q.dtype == k.dtype == v.dtype:
        raise TypeError(
            "interval_attention: expected q, k and v of one dtype among float32, float64, bfloat16 and float16, "
            f"got {q.dtype}, {k.dtype} and {v.dtype}"
        )
    if intervals.is_floating_point() or intervals.is_complex() or intervals.dtype == torch.bool:
        raise TypeError(f"interval_attention: expected intervals of integers, got {intervals.dtype}")
    if not q.device == k.device == v.device == intervals.device:
        raise ValueError(
            "interval_attention: expected one device, "
            f"got q on {q.device}, k on {k.device}, v on {v.device} and intervals on {intervals.device}"
        )


def check_order(intervals: Tensor, last: int) -> None:
    """Raises ValueError for the first query whose intervals are out of order or out of range."""
    if torch.compiler.is_compiling() or intervals.device.type == "meta":
        return  # values aren't known while tracing
    a, b, c, d = intervals.unbind(-1)
    good = (a >= 0) & (a <= b) & (b <= last) & (c >= 0) & (c <= d) & (d <= last)
    if intervals.is_cuda:
        torch._assert_async(good.all())  # no wait for the device
    elif not bool(good.all()):
        batch, query = (~good).nonzero()[0].tolist()
        raise ValueError(
            f"interval_attention: expected 0 <= a <= b <= {last} and 0 <= c <= d <= {last}, "
            f"got {intervals[batch, query].tolist()} for query {query} of batch {batch}"
        )


def _fake(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    rows = torch.float32 if q.is_cuda and q.dtype != torch.float64 else torch.float64
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=rows)


def _fake_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, out: Tensor, logsumexp: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, intervals, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, intervals, *output)


def _backward(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    q, k, v, intervals, out, logsumexp = ctx.saved_tensors
    if torch.is_grad_enabled():  # a second derivative is asked for: only plain PyTorch has it
        out = reference.interval_attention(q, k, v, intervals, ctx.scale)
        logsumexp = reference.interval_logsumexp(q, k, intervals, ctx.scale)
        grads = reference.interval_attention_backward(grad_out, q, k, v, intervals, out, logsumexp, ctx.scale)
    else:
        op = torch.ops.pyramid.interval_attention_backward.default
        grads = op(grad_out, q, k, v, intervals, out, logsumexp, ctx.scale)
    return *grads, None, None


@_library.on_load
def _register() -> None:
    torch.library.register_fake("pyramid::interval_attention", _fake)
    torch.library.register_fake("pyramid::interval_attention_backward", _fake_backward)
    torch.library.register_autograd("pyramid::interval_attention", _backward, setup_context=_setup_context)
