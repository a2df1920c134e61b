"""Resampling of a level to another grid, down by the mean over the area, up by the nearest (VAR, 2404.02905, pools and
puts back its residuals so). Shapes: x (B, C, t, h, w)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyramid.ops import _library, reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def level_resample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resample a level to another grid: the mean over the area on the way down, the nearest on the way up.

    Axis by axis: cell i of n covers [floor(i m / n), ceil((i + 1) m / n)) of m on the way down, and takes
    floor(i m / n) on the way up, in integers. Down first, then up.

    Args:
        x: (B, C, t, h, w) float32, float64, bfloat16 or float16. Any strides, without a copy. size: (t, h, w), each
            at least 1.

    Returns:
        (B, C, *size), dtype of x; the mean is taken in float32 at least. In memory, where the compiled op runs: the
        channels of a cell are adjacent (channels_last_3d) where those of x are, else it is contiguous. So a view
        `y.movedim(-1, 1)` of a channels-last y stays one, and `out.movedim(1, -1)` costs nothing.

    Raises:
        ValueError: shape or size. TypeError: another dtype.
    """
    if x.ndim != 5 or min(x.shape[2:]) < 1:
        raise ValueError(f"level_resample: expected x (B, C, t, h, w) without an empty axis, got {tuple(x.shape)}")
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"level_resample: expected size (t, h, w), each at least 1, got {tuple(size)}")
    if x.dtype not in FLOATS:
        raise TypeError(f"level_resample: expected float32, float64, bfloat16 or float16, got {x.dtype}")
    if _library.use_native(x):
        return torch.ops.pyramid.level_resample.default(x, list(size))
    return reference.level_resample(x, tuple(size))


def empty_level(x: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    """(B, C, *size) without values, as the compiled ops allocate it."""
    batch, channels = x.shape[:2]
    if channels_last:
        return x.new_empty(batch, *size, channels).movedim(-1, 1)
    return x.new_empty(batch, channels, *size)


def is_channels_last(x: Tensor) -> bool:
    return x.shape[1] > 1 and x.stride(1) == 1


def _fake(x: Tensor, size: Sequence[int]) -> Tensor:
    return empty_level(x, size, is_channels_last(x))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Sequence[int]], output: Tensor) -> None:
    ctx.before = list(inputs[0].shape[2:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.pyramid.level_resample_backward.default(grad, ctx.before), None


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    """The adjoint of the adjoint: the op itself."""
    return torch.ops.pyramid.level_resample.default(grad, ctx.before), None


@_library.on_load
def _register() -> None:
    for name, backward in (("level_resample", _backward), ("level_resample_backward", _backward_backward)):
        torch.library.register_fake(f"pyramid::{name}", _fake)
        torch.library.register_autograd(f"pyramid::{name}", backward, setup_context=_setup_context)
