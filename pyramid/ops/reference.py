"""Every op in plain PyTorch: the truth that the compiled ops are tested against, and what runs without them.

Written to be read. Arithmetic is in float32 (float64 for float64 input) whatever the dtype, autocast or not. The ops
that have no compiled form yet are public from here, and checked here. Legend: B batch, N rows, D
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
    """See `pyramid.ops.code_logsumexp`. z (..., D), codebook (K, D) -> (...)."""
    rows, codes = _centered(z, codebook)
    return torch.logsumexp(-_squared_distances(rows, codes) / tau, -1).reshape(z.shape[:-1])


def _centered(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) and (K, D) in float32 at least, less the mean code: distances don't change, and less cancels."""
    with torch.autocast(z.device.type, enabled=False):
        dtype = _compute_dtype(z)
        codes = codebook.to(dtype)
        center = codes.detach().mean(0)
        return z.to(dtype).reshape(-1, z.shape[-1]) - center, codes - center


def _squared_distances(rows: Tensor, codes: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        squares = rows.square().sum(-1, keepdim=True) - 2 * rows @ codes.T + codes.square().sum(-1)
        return squares.clamp_min(0)


def mean_code(z: Tensor, codebook: Tensor, tau: float) -> Tensor:
    """(..., D): the codes' mean by softmax(-|z - e|^2 / tau). Less z it is the second output of the compiled op."""
    rows, codes = _centered(z, codebook)
    p = torch.softmax(-_squared_distances(rows, codes) / tau, -1)
    return (p @ codebook.to(codes.dtype)).reshape(z.shape)


def code_logsumexp_backward(grad: Tensor, z: Tensor, codebook: Tensor, logsumexp: Tensor, tau: float) -> Tensor:
    """The gradient of the codebook (K, D) from grad (...) and the forward's logsumexp (...)."""
    rows, codes = _centered(z, codebook)
    p = torch.exp(-_squared_distances(rows, codes) / tau - logsumexp.reshape(-1, 1)) * grad.reshape(-1, 1)
    return ((p.T @ rows - p.sum(0)[:, None] * codes) * (2 / tau)).to(codebook.dtype)


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


def interval_attention(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float) -> Tensor:
    """See `pyramid.ops.interval_attention`. q (B, H, S, D), k, v (B, Hkv, Skv, D or Dv), intervals (B or 1, S, 4)."""
    if k.shape[2] == 0:
        return (q.sum() + k.sum() + v.sum()) * q.new_zeros(*q.shape[:3], v.shape[-1])
    seen = _seen(intervals, k.shape[2])
    some = seen.any(-1, keepdim=True)  # (B or 1, 1, S, 1)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    # A row that sees nothing attends to all and is then dropped: no softmax over nothing, no NaN in its gradient.
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen | ~some, scale=scale)
    return torch.where(some, out, torch.zeros((), dtype=out.dtype, device=out.device))


def _seen(intervals: Tensor, num_keys: int) -> Tensor:
    """intervals (B or 1, S, 4) -> (B or 1, 1, S, Skv) bool"""
    a, b, c, d = intervals.unsqueeze(1).unsqueeze(3).unbind(-1)  # each (B or 1, 1, S, 1)
    key = torch.arange(num_keys, device=intervals.device)
    return (key >= a) & (key < b) | (key >= c) & (key < d)


def _interval_scores(q: Tensor, k: Tensor, intervals: Tensor, scale: float) -> Tensor:
    """(B, H, S, Skv) in float32 at least, -inf where a key is not seen; k has as many heads as q."""
    dtype = _compute_dtype(q)
    scores = q.to(dtype) @ k.to(dtype).transpose(2, 3) * scale
    return scores.masked_fill(~_seen(intervals, k.shape[2]), -math.inf)


def interval_logsumexp(q: Tensor, k: Tensor, intervals: Tensor, scale: float) -> Tensor:
    """The second output of the compiled op: (B, H, S), logsumexp of a query's scores, -inf where it sees nothing."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    return torch.logsumexp(_interval_scores(q, k, intervals, scale), -1)


def interval_attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, out: Tensor, logsumexp: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from grad_out (B, H, S, Dv) and what the forward gave: logsumexp (B, H, S), and out
    (B, H, S, Dv), which is not needed here: out . grad_out, taken from it elsewhere, is the sum of p by_p."""
    dtype, groups = _compute_dtype(q), q.shape[1] // k.shape[1]
    wide_k, wide_v = (x.to(dtype).repeat_interleave(groups, 1) for x in (k, v))
    up, scores = grad_out.to(dtype), _interval_scores(q, wide_k, intervals, scale)
    p = torch.exp(scores - logsumexp.masked_fill(logsumexp == -math.inf, 0.0).unsqueeze(-1))
    by_p = up @ wide_v.transpose(2, 3)
    by_scores = p * (by_p - (p * by_p).sum(-1, keepdim=True)) * scale

    def of_heads(x: Tensor) -> Tensor:  # the query heads of a group add up
        return x.unflatten(1, (k.shape[1], groups)).sum(2)

    by_q, by_k = by_scores @ wide_k, of_heads(by_scores.transpose(2, 3) @ q.to(dtype))
    by_v = of_heads(p.transpose(2, 3) @ up)
    return by_q.to(q.dtype), by_k.to(k.dtype), by_v.to(v.dtype)


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
