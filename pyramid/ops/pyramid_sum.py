"""Putting the levels of a pyramid back together: each resampled to the finest grid, then summed (VAR, 2404.02905).

Shapes: level l (B, C, *grids[l]), the sum (B, C, *grids[-1]).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyramid.ops import _library, reference
from pyramid.ops.level_resample import FLOATS, empty_level, is_channels_last

MAX_LEVELS = 32


def pyramid_sum(codes: Sequence[Tensor], grids: Sequence[Sequence[int]], k: int) -> Tensor:
    """Put the first k levels back together, in one pass over the result.

    Args:
        codes: the levels' codes, coarse first, at least k of them, codes[l] being (B, C, *grids[l]), all float32,
            float64, bfloat16 or float16. A level may be larger than the result: then its mean counts.
        grids: (t, h, w) of every level of the pyramid, coarse first; the last one is the grid of the result.
        k: how many levels count, 1 <= k <= len(codes), at most 32.

    Returns:
        (B, C, *grids[-1]), dtype of codes[0]; summed coarse to fine in float32 at least. In memory, where the
        compiled op runs: channels last where codes[k - 1] is, else contiguous (see `level_resample`).

    Raises:
        ValueError: k out of range, a level that isn't on its grid. TypeError: another dtype, or several.
    """
    most = min(len(codes), len(grids), MAX_LEVELS)
    if not 1 <= k <= most:
        raise ValueError(f"pyramid_sum: expected 1 <= k <= {most} levels, got k = {k}")
    levels = list(codes[:k])
    for level, (code, grid) in enumerate(zip(levels, grids[:k], strict=True)):
        if code.ndim != 5 or tuple(code.shape[2:]) != tuple(grid) or code.shape[:2] != levels[0].shape[:2]:
            raise ValueError(
                f"pyramid_sum: expected level {level} to be (B, C, {', '.join(map(str, grid))}) "
                f"as level 0, got {tuple(code.shape)}"
            )
        if code.dtype not in FLOATS or code.dtype != levels[0].dtype:
            raise TypeError(
                "pyramid_sum: expected all levels in one of float32, float64, bfloat16 or float16, "
                f"got {code.dtype} in level {level} and {levels[0].dtype} in level 0"
            )
    size = tuple(grids[-1])
    if len(size) != 3 or min((*size, *(n for grid in grids[:k] for n in grid))) < 1:
        raise ValueError(f"pyramid_sum: expected grids (t, h, w), each at least 1, got {list(grids)}")
    if _library.use_native(levels[0]):
        return torch.ops.pyramid.pyramid_sum.default(levels, list(size))
    return reference.pyramid_sum(levels, size)


def _fake(codes: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    return empty_level(codes[0], size, is_channels_last(codes[-1]))


def _fake_backward(grad: Tensor, grids: Sequence[int]) -> list[Tensor]:
    each = [grids[i : i + 3] for i in range(0, len(grids), 3)]
    return [empty_level(grad, grid, is_channels_last(grad)) for grid in each]


def _setup_context(ctx: Any, inputs: tuple[Sequence[Tensor], Sequence[int]], output: Tensor) -> None:
    ctx.grids = [n for code in inputs[0] for n in code.shape[2:]]


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None]:
    """A level on the grid of the sum has the gradient of the sum, as it is."""
    each = [ctx.grids[i : i + 3] for i in range(0, len(ctx.grids), 3)]
    size = list(grad.shape[2:])
    others = [n for grid in each if grid != size for n in grid]
    grads = iter(torch.ops.pyramid.pyramid_sum_backward.default(grad, others) if others else ())
    return [grad if grid == size else next(grads) for grid in each], None


def _setup_context_backward(ctx: Any, inputs: tuple[Tensor, Sequence[int]], output: Sequence[Tensor]) -> None:
    ctx.size = list(inputs[0].shape[2:])


def _backward_backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor, None]:
    """The adjoint of the adjoint: the op itself."""
    return torch.ops.pyramid.pyramid_sum.default(list(grads), ctx.size), None


@_library.on_load
def _register() -> None:
    torch.library.register_fake("pyramid::pyramid_sum", _fake)
    torch.library.register_fake("pyramid::pyramid_sum_backward", _fake_backward)
    torch.library.register_autograd("pyramid::pyramid_sum", _backward, setup_context=_setup_context)
    torch.library.register_autograd(
        "pyramid::pyramid_sum_backward", _backward_backward, setup_context=_setup_context_backward
    )
