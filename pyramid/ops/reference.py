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


def joint_bit_entropy(
    x: Tensor, temperature: float, process_group: torch.distributed.ProcessGroup | None = None
) -> Tensor:
    """Entropy of the mean, over rows, of the joint distribution of d independent bits: over all 2^d codes, exactly.

    Bit i of a row is set with probability sigmoid(4 x_i / temperature), as in `bit_quantize`. The bits are split in two
    halves; with A (N, 2^(d/2)) and B the probabilities of each half, the mean is A^T B / N. No grouping, no sampling.

    Args:
        x: (N, d), N >= 1, 1 <= d <= 28. temperature: > 0.
        process_group: the ranks whose rows count together (each may have its own N, also none); None: this rank
            alone. The gradient is that of the sum over ranks, which DDP's averaging turns into that of one process.

    Returns:
        Scalar, nats: at most d log 2. float32 (float64 for float64).

    Raises:
        ValueError: shape, no rows, temperature <= 0.
    """
    if x.ndim != 2 or not 1 <= x.shape[1] <= 28:
        raise ValueError(f"joint_bit_entropy: expected x (N, d) with 1 <= d <= 28, got {tuple(x.shape)}")
    if x.shape[0] == 0 and process_group is None:
        raise ValueError("joint_bit_entropy: expected at least one row, got none")
    if not temperature > 0:
        raise ValueError(f"joint_bit_entropy: expected temperature > 0, got {temperature}")
    with torch.autocast(x.device.type, enabled=False):
        logit = x.to(_compute_dtype(x)) * (4 / temperature)
        half = x.shape[1] // 2
        joint = _half_probabilities(logit[:, :half]).T @ _half_probabilities(logit[:, half:])
        num_rows = torch.tensor(float(x.shape[0]), dtype=joint.dtype, device=x.device)
        if process_group is not None:
            import torch.distributed.nn.functional as distributed

            joint = distributed.all_reduce(joint, group=process_group)
            torch.distributed.all_reduce(num_rows, group=process_group)
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
    """Gradients of q, k and v from grad_out (B, H, S, Dv) and what the forward gave: out (B, H, S, Dv) and logsumexp
    (B, H, S)."""
    dtype, groups = _compute_dtype(q), q.shape[1] // k.shape[1]
    wide_k, wide_v = (x.to(dtype).repeat_interleave(groups, 1) for x in (k, v))
    up, scores = grad_out.to(dtype), _interval_scores(q, wide_k, intervals, scale)
    p = torch.exp(scores - logsumexp.masked_fill(logsumexp == -math.inf, 0.0).unsqueeze(-1))
    delta = (up * out.to(dtype)).sum(-1, keepdim=True)
    by_scores = p * (up @ wide_v.transpose(2, 3) - delta) * scale

    def of_heads(x: Tensor) -> Tensor:  # the query heads of a group add up
        return x.unflatten(1, (k.shape[1], groups)).sum(2)

    by_q, by_k = by_scores @ wide_k, of_heads(by_scores.transpose(2, 3) @ q.to(dtype))
    by_v = of_heads(p.transpose(2, 3) @ up)
    return by_q.to(q.dtype), by_k.to(k.dtype), by_v.to(v.dtype)


def level_resample(x: Tensor, size: Grid) -> Tensor:
    """Resample a level to another grid: the mean over the area on the way down, the nearest on the way up.

    Axis by axis: cell i of n covers [floor(i m / n), ceil((i + 1) m / n)) of m on the way down, and takes
    floor(i m / n) on the way up, in integers. Down first, then up.

    Args:
        x: (B, C, t, h, w) floating. size: (t, h, w), each >= 1.

    Returns:
        (B, C, *size), dtype of x; the mean is taken in float32 at least.

    Raises:
        ValueError: shape or size.
    """
    if x.ndim != 5 or min(x.shape[2:]) < 1:
        raise ValueError(f"level_resample: expected x (B, C, t, h, w) without an empty axis, got {tuple(x.shape)}")
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"level_resample: expected size (t, h, w), each at least 1, got {tuple(size)}")
    small = tuple(min(new, old) for new, old in zip(size, x.shape[2:], strict=True))
    out = x
    if small != tuple(x.shape[2:]):
        out = F.adaptive_avg_pool3d(x.to(_compute_dtype(x)), small).to(x.dtype)
    for axis, new in zip((2, 3, 4), size, strict=True):
        if (old := out.shape[axis]) != new:
            out = out.index_select(axis, torch.arange(new, device=x.device) * old // new)
    return out


def pyramid_sum(codes: Sequence[Tensor], grids: Sequence[Grid], k: int) -> Tensor:
    """Put the first k levels back together: each resampled to the finest grid, then summed (VAR, 2404.02905).

    Args:
        codes: the levels' codes, coarse first, at least k of them, codes[l] being (B, C, *grids[l]).
        grids: (t, h, w) of every level of the pyramid, coarse first; the last one is the grid of the result.
        k: how many levels count, 1 <= k <= len(codes).

    Returns:
        (B, C, *grids[-1]), dtype of codes[0]; summed coarse to fine in float32 at least.

    Raises:
        ValueError: k out of range, a level that isn't on its grid.
    """
    if not 1 <= k <= min(len(codes), len(grids)):
        raise ValueError(f"pyramid_sum: expected 1 <= k <= {min(len(codes), len(grids))} levels, got k = {k}")
    for level, (code, grid) in enumerate(zip(codes[:k], grids[:k], strict=True)):
        if code.ndim != 5 or tuple(code.shape[2:]) != tuple(grid) or code.shape[:2] != codes[0].shape[:2]:
            raise ValueError(
                f"pyramid_sum: expected level {level} to be (B, C, {', '.join(map(str, grid))}) "
                f"as level 0, got {tuple(code.shape)}"
            )
    dtype = _compute_dtype(codes[0])
    total = level_resample(codes[0].to(dtype), grids[-1])
    for code in codes[1:k]:
        total = total + level_resample(code.to(dtype), grids[-1])
    return total.to(codes[0].dtype)
