"""Every op in plain PyTorch: the truth that the compiled ops are tested against, and what runs without them.

Written to be read. Arithmetic is in float32 (float64 for float64 input) whatever the dtype, autocast or not. The ops
that have no compiled form yet are public from here; their arguments are checked here. Legend: B batch, N rows, D
width, K codes, d bits, H heads, S queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int, int]


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def nearest_code(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """See `pyramid.ops.nearest_code`. z (..., D), codebook (K, D) -> ids (...), distance (...)."""
    rows = z.detach().reshape(-1, z.shape[-1]).double()
    codes = codebook.detach().double()
    rows_at_a_time = max(1, (1 << 22) // codes.shape[0])
    nearest = [torch.zeros(0, dtype=torch.int64, device=z.device)]
    for chunk in rows.split(rows_at_a_time):
        distance = torch.cdist(chunk, codes, compute_mode="donot_use_mm_for_euclid_dist")
        least = distance.nan_to_num(nan=math.inf, posinf=math.inf)
        nearest.append(_lowest_argmin(least))
    ids = torch.cat(nearest)
    dtype = _compute_dtype(z)
    chosen = codebook.index_select(0, ids).reshape(z.shape)
    return ids.reshape(z.shape[:-1]), (z.to(dtype) - chosen.to(dtype)).square().sum(-1)


def _lowest_argmin(values: Tensor) -> Tensor:
    """(N, K) -> (N,): `argmin` doesn't promise which of several equal values it names."""
    return (values == values.amin(-1, keepdim=True)).to(torch.uint8).argmax(-1)


def bit_quantize(x: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `pyramid.ops.bit_quantize`. x (..., d) -> codes (..., d), ids (...), entropy (...), commitment (...)."""
    positive = x > 0
    sign = torch.where(positive, 1.0, -1.0).to(x.dtype)
    codes = straight_through(x, sign)
    place = 1 << torch.arange(x.shape[-1], device=x.device)
    ids = (positive * place).sum(-1)
    wide = x.to(_compute_dtype(x))
    entropy = binary_entropy(wide * (4 / temperature)).sum(-1)
    commitment = (wide - sign.to(wide.dtype)).square().mean(-1)
    return codes, ids, entropy, commitment


def straight_through(x: Tensor, code: Tensor) -> Tensor:
    """`code` forward, to the bit; backward x takes the gradient as it is. Same shapes and dtypes (...), NaN included.

    The usual `x + (code - x).detach()` rounds.
    """
    return _StraightThrough.apply(x, code)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, code: Tensor) -> Tensor:
        return code.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


def bit_quantize_backward(
    x: Tensor,
    temperature: float,
    grad_codes: Tensor | None,
    grad_entropy: Tensor | None,
    grad_commitment: Tensor | None,
) -> Tensor:
    """The gradient of x (..., d) from grad_codes (..., d), grad_entropy (...), grad_commitment (...)."""
    wide = x.to(_compute_dtype(x))
    grad_x = torch.zeros_like(wide)
    if grad_codes is not None:
        grad_x = grad_x + grad_codes
    if grad_entropy is not None:
        y = wide * (4 / temperature)
        limit = _greatest_logit(y)
        slope = -y.clamp(-limit, limit) * torch.sigmoid(y) * torch.sigmoid(-y)
        grad_x = grad_x + grad_entropy.unsqueeze(-1) * slope * (4 / temperature)
    if grad_commitment is not None:
        sign = torch.where(wide > 0, 1.0, -1.0).to(wide.dtype)
        grad_x = grad_x + grad_commitment.unsqueeze(-1) * 2 * (wide - sign) / x.shape[-1]
    return grad_x.to(x.dtype)


def binary_entropy(logit: Tensor) -> Tensor:
    """Entropy in nats of a bit with this logit; any shape. Neither it nor its gradient overflows."""
    a = logit.abs().clamp(max=_greatest_logit(logit))
    return torch.log1p(torch.exp(-a)) + a * torch.sigmoid(-a)


def _greatest_logit(logit: Tensor) -> float:
    """Where exp(-a) is 0 for all purposes: cutting there, infinity times zero doesn't arise."""
    return 700.0 if logit.dtype == torch.float64 else 87.0


def code_logsumexp(z: Tensor, codebook: Tensor, tau: float) -> Tensor:
    """logsumexp over the codes of -|z - e|^2 / tau: the normalizer of a cross-entropy over words (SPAE, 2306.17842).

    Args:
        z: (..., D). codebook: (K, D), same dtype. tau: > 0.

    Returns:
        (...) float32 (float64 for float64), differentiable by z and codebook.

    Raises:
        ValueError: shapes that don't fit, an empty codebook, tau <= 0.
    """
    if z.ndim < 1 or codebook.ndim != 2 or z.shape[-1] != codebook.shape[1] or codebook.shape[0] == 0:
        raise ValueError(
            "code_logsumexp: expected z (..., D) and codebook (K, D) with K >= 1, "
            f"got {tuple(z.shape)} and {tuple(codebook.shape)}"
        )
    if not tau > 0:
        raise ValueError(f"code_logsumexp: expected tau > 0, got {tau}")
    with torch.autocast(z.device.type, enabled=False):
        dtype = _compute_dtype(z)
        codes = codebook.to(dtype)
        center = codes.detach().mean(0)  # distances don't change, and less cancels
        codes, rows = codes - center, z.to(dtype).reshape(-1, z.shape[-1]) - center
        squares = rows.square().sum(-1, keepdim=True) - 2 * rows @ codes.T + codes.square().sum(-1)
        return torch.logsumexp(-squares.clamp_min(0) / tau, -1).reshape(z.shape[:-1])


def joint_bit_sum(x: Tensor, temperature: float) -> Tensor:
    """x (N, d) -> (2^(d/2), 2^(d - d/2)): the sum over rows of the joint probabilities of all 2^d codes.

    See `pyramid.ops.joint_bit_entropy`. The low bits are the first axis: the code a + b 2^(d/2) is at [a, b].
    """
    logit = x.to(_compute_dtype(x)) * (4 / temperature)
    half = x.shape[1] // 2
    return _half_probabilities(logit[:, :half]).T @ _half_probabilities(logit[:, half:])


def joint_bit_sum_backward(grad: Tensor, x: Tensor, temperature: float) -> Tensor:
    """The gradient of x (N, d) from grad (2^(d/2), 2^(d - d/2))."""
    logit = x.to(_compute_dtype(x)) * (4 / temperature)
    half = x.shape[1] // 2
    low, high = _half_probabilities(logit[:, :half]), _half_probabilities(logit[:, half:])
    grad_low, grad_high = high @ grad.T, low @ grad
    by_half = [
        _half_backward(grad_low * low, logit[:, :half]),
        _half_backward(grad_high * high, logit[:, half:]),
    ]
    return (torch.cat(by_half, dim=1) * (4 / temperature)).to(x.dtype)


def _half_backward(share: Tensor, logit: Tensor) -> Tensor:
    """(N, 2^m), (N, m) -> (N, m): each bit's logit raises the codes with the bit and lowers those without."""
    bits = torch.arange(logit.shape[1], device=logit.device)
    codes = torch.arange(share.shape[1], device=logit.device)
    is_set = ((codes[:, None] >> bits) & 1).to(logit.dtype)
    return torch.sigmoid(-logit) * (share @ is_set) - torch.sigmoid(logit) * (share @ (1 - is_set))


def mean_entropy(joint: Tensor, num_rows: Tensor) -> Tensor:
    """Entropy, nats, of the distribution joint / num_rows."""
    mean = joint / num_rows
    return -(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()


def _half_probabilities(logit: Tensor) -> Tensor:
    """(N, m) -> (N, 2^m): the probability of each pattern of these bits, little-endian."""
    table = logit.new_ones(logit.shape[0], 1)
    for i in range(logit.shape[1]):
        bit = logit[:, i : i + 1]
        table = torch.cat([table * torch.sigmoid(-bit), table * torch.sigmoid(bit)], dim=1)
    return table


def interval_attention(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float | None = None) -> Tensor:
    """Attention in which each query sees the keys [a, b) and [c, d): causal, prefix, block, window and packed in one.

    Args:
        q: (B, H, S, D). k, v: (B, Hkv, Skv, D) and (B, Hkv, Skv, Dv), H a multiple of Hkv (grouped heads).
        intervals: (B or 1, S, 4) integers a, b, c, d with 0 <= a <= b <= Skv and 0 <= c <= d <= Skv, on q's device.
            The two may overlap; a key is seen once. a = b or c = d is an empty interval.
        scale: of the scores; None: 1 / sqrt(D).

    Returns:
        (B, H, S, Dv); zeros where a query sees nothing.

    Raises:
        ValueError: shapes that don't fit, intervals that are out of order or out of range. TypeError: their dtype.
    """
    _check_attention(q, k, v, intervals)
    a, b, c, d = intervals.unsqueeze(1).unbind(-1)  # each (B or 1, 1, S)
    key = torch.arange(k.shape[2], device=q.device)
    seen = (key >= a[..., None]) & (key < b[..., None]) | (key >= c[..., None]) & (key < d[..., None])
    some = seen.any(-1, keepdim=True)  # (B or 1, 1, S, 1)
    if k.shape[2] == 0:
        return q.new_zeros(*q.shape[:3], v.shape[-1])
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    # A row that sees nothing attends to all and is then dropped: no softmax over nothing, no NaN in its gradient.
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen | ~some, scale=scale)
    return torch.where(some, out, torch.zeros((), dtype=out.dtype, device=out.device))


def _check_attention(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor) -> None:
    if not (
        q.ndim == k.ndim == v.ndim == 4
        and q.shape[0] == k.shape[0] == v.shape[0]
        and q.shape[3] == k.shape[3]
        and k.shape[1:3] == v.shape[1:3]
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
    if intervals.is_floating_point() or intervals.is_complex() or intervals.dtype == torch.bool:
        raise TypeError(f"interval_attention: expected intervals of integers, got {intervals.dtype}")
    if torch.compiler.is_compiling() or intervals.device.type == "meta":
        return  # values aren't known while tracing
    a, b, c, d = intervals.unbind(-1)
    last = k.shape[2]
    good = (a >= 0) & (a <= b) & (b <= last) & (c >= 0) & (c <= d) & (d <= last)
    if intervals.is_cuda:
        torch._assert_async(good.all())  # no wait for the device
    elif not bool(good.all()):
        batch, query = (~good).nonzero()[0].tolist()
        raise ValueError(
            f"interval_attention: expected 0 <= a <= b <= {last} and 0 <= c <= d <= {last}, "
            f"got {intervals[batch, query].tolist()} for query {query} of batch {batch}"
        )


def level_resample(x: Tensor, size: Grid) -> Tensor:
    """See `pyramid.ops.level_resample`. x (B, C, t, h, w) -> (B, C, *size)."""
    small = tuple(min(new, old) for new, old in zip(size, x.shape[2:], strict=True))
    out = x
    if small != tuple(x.shape[2:]):
        out = F.adaptive_avg_pool3d(x.to(_compute_dtype(x)), small).to(x.dtype)
    for axis, new in zip((2, 3, 4), size, strict=True):
        if (old := out.shape[axis]) != new:
            out = out.index_select(axis, torch.arange(new, device=x.device) * old // new)
    return out


def level_resample_backward(grad: Tensor, size: Grid) -> Tensor:
    """The gradient of x (B, C, *size) from that of `level_resample`'s result, grad (B, C, t, h, w)."""
    with torch.autocast(grad.device.type, enabled=False):
        wide = grad.to(_compute_dtype(grad))
        shares = [_shares(old, new, wide) for old, new in zip(size, grad.shape[2:], strict=True)]
        return torch.einsum("bcthw,tx,hy,wz->bcxyz", wide, *shares).to(grad.dtype)


def _shares(old: int, new: int, like: Tensor) -> Tensor:
    """(new, old): how much each of the old cells counts in each of the new ones."""
    shares = like.new_zeros(new, old)
    for i in range(new):
        begin = i * old // new
        end = -(-(i + 1) * old // new) if new < old else begin + 1
        shares[i, begin:end] = 1 / (end - begin)
    return shares


def pyramid_sum(codes: Sequence[Tensor], size: Grid) -> Tensor:
    """See `pyramid.ops.pyramid_sum`. codes: k levels (B, C, t, h, w), coarse first -> (B, C, *size)."""
    dtype = _compute_dtype(codes[0])
    total = level_resample(codes[0].to(dtype), size)
    for code in codes[1:]:
        total = total + level_resample(code.to(dtype), size)
    return total.to(codes[0].dtype)


def pyramid_sum_backward(grad: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    """The gradients of levels (B, C, *grids[l]) from that of their sum, grad (B, C, t, h, w)."""
    return [level_resample_backward(grad, grid) for grid in grids]
