"""Cross-entropy of a large linear head without its logits: `linear_cross_entropy`.

The logits of all tokens over a vocabulary of 150,000 take gigabytes; here they are made, used for the loss and for both
gradients, and dropped, some rows at a time (as in Liger-Kernel's fused linear cross-entropy, 2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LOGITS = 1 << 22  # numbers held at once


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, ignore: int) -> Tensor:
        rows = max(1, _LOGITS // len(weight))
        counted = target != ignore
        share = 1.0 / max(1, int(counted.sum()))
        to_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden), rows):
            part, wanted = hidden[start : start + rows], target[start : start + rows]
            good = counted[start : start + rows]
            logits = (part @ weight.T.to(part.dtype)).float()
            norm = logits.logsumexp(dim=1)
            index = wanted.masked_fill(~good, 0)[:, None]
            total = total + ((norm - logits.gather(1, index)[:, 0]) * good).sum()
            slope = (logits - norm[:, None]).exp_()
            slope.scatter_add_(1, index, -torch.ones_like(index, dtype=slope.dtype))
            slope *= good[:, None] * share
            if to_hidden is not None:
                to_hidden[start : start + rows] = slope.to(part.dtype) @ weight.to(part.dtype)
            if to_weight is not None:
                to_weight += slope.T @ part.float()
        ctx.gradients = (to_hidden, None if to_weight is None else to_weight.to(weight.dtype))
        return total * share

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        to_hidden, to_weight = ctx.gradients
        return (
            None if to_hidden is None else to_hidden * scale.to(to_hidden.dtype),
            None if to_weight is None else to_weight * scale.to(to_weight.dtype),
            None,
            None,
        )


def linear_cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor, ignore: int = -100) -> Tensor:
    """Mean cross-entropy of the logits hidden @ weight.T.

    Args:
        hidden: (N, D), any floating dtype; the products run in it, sums and exponentials in float32.
        weight: (V, D). target: (N,) int64; rows of `ignore` do not count.

    Returns a float32 scalar, 0 where no row counts, with gradients to `hidden` and `weight`, made in the forward pass.
    Raises ValueError for other shapes.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or target.shape != hidden.shape[:1]:
        raise ValueError(
            "linear_cross_entropy: expected hidden (N, D), weight (V, D), target (N,), got "
            f"{tuple(hidden.shape)}, {tuple(weight.shape)}, {tuple(target.shape)}"
        )
    return _LinearCrossEntropy.apply(hidden, weight, target, ignore)
