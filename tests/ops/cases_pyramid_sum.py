"""Rows of pyramid_sum and its backward. Arguments are flat here (level, level, ..., size); `pack` makes the list."""

from __future__ import annotations

from typing import Any

import torch
from ops.case import Make, Op, Sample, randn

from pyramid import ops
from pyramid.ops import reference

Grid = tuple[int, int, int]


def levels(lead: tuple[int, int], grids: list[Grid], size: Grid, *, channels_last: bool = False) -> Make:
    def make(dtype, device):
        codes = [randn((*lead, *grid), dtype, device) for grid in grids]
        if channels_last:
            codes = [code.movedim(1, -1).contiguous().movedim(-1, 1) for code in codes]
        return *codes, list(size)

    return make


def gradient(lead: tuple[int, int], grids: list[Grid], size: Grid, *, channels_last: bool = False) -> Make:
    def make(dtype, device):
        (grad, _) = levels(lead, [size], size, channels_last=channels_last)(dtype, device)
        return grad, [n for grid in grids for n in grid]

    return make


def samples(make: Any) -> list[Sample]:
    five = [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 4, 4), (2, 8, 8)]
    return [
        Sample("one level", make((1, 2), [(1, 2, 1)], (2, 2, 3))),
        Sample("small", make((2, 3), [(1, 1, 1), (1, 2, 2)], (1, 2, 4))),
        Sample("five levels", make((3, 5), five, (2, 8, 8))),
        Sample("larger than the result", make((2, 3), [(4, 2, 9), (1, 5, 2), (3, 3, 7)], (3, 3, 4))),
        Sample("wide rows", make((1, 2), [(1, 1, 5), (1, 2, 70)], (2, 3, 67))),
        Sample("channels last", make((2, 85), five, (2, 8, 8), channels_last=True)),
        Sample("larger, channels last", make((2, 33), [(4, 2, 9), (3, 3, 7)], (3, 3, 4), channels_last=True)),
    ]


def pack(*args: Any) -> tuple[list[torch.Tensor], list[int]]:
    return list(args[:-1]), args[-1]


def pyramid_sum_native(*args: Any):
    return torch.ops.pyramid.pyramid_sum.default(*pack(*args))


def pyramid_sum_reference(*args: Any):
    return reference.pyramid_sum(*pack(*args))


def pyramid_sum_backward_native(grad, grids):
    return torch.ops.pyramid.pyramid_sum_backward.default(grad, grids)


def pyramid_sum_backward_reference(grad, grids):
    return reference.pyramid_sum_backward(grad, [tuple(grids[i : i + 3]) for i in range(0, len(grids), 3)])


PYRAMID_SUM = Op(
    name="pyramid_sum",
    native=pyramid_sum_native,
    reference=pyramid_sum_reference,
    samples=samples(levels),
    empty=Sample("no rows", levels((0, 3), [(1, 1, 1), (1, 2, 2)], (1, 2, 2))),
    differentiable=(0,),
    gradcheck=pyramid_sum_native,
    pack=pack,
    keeps_layout=True,  # of the last level, as level_resample does
    errors=[
        ("levels", ValueError, "1 <= k <= 1 levels, got k = 2",
         lambda device: ops.pyramid_sum([torch.zeros(1, 1, 1, 1, 1, device=device)], [(1, 1, 1), (2, 2, 2)], 2)),
        ("grid", ValueError, r"level 0 to be \(B, C, 1, 2, 2\) .*got \(1, 1, 1, 1, 1\)",
         lambda device: ops.pyramid_sum([torch.zeros(1, 1, 1, 1, 1, device=device)], [(1, 2, 2)], 1)),
        ("size", ValueError, r"each at least 1, got \[\(1, 1, 1\), \(2, 0, 2\)\]",
         lambda device: ops.pyramid_sum([torch.zeros(1, 1, 1, 1, 1, device=device)], [(1, 1, 1), (2, 0, 2)], 1)),
        ("two dtypes", TypeError, "got torch.float64 in level 1 and torch.float32 in level 0",
         lambda device: ops.pyramid_sum(
             [torch.zeros(1, 1, 1, 1, 1, device=device), torch.zeros(1, 1, 1, 1, 1, device=device).double()],
             [(1, 1, 1), (1, 1, 1)], 2)),
        ("integers", TypeError, "got torch.int64 in level 0",
         lambda device: ops.pyramid_sum([torch.zeros(1, 1, 1, 1, 1, device=device).long()], [(1, 1, 1)], 1)),
        ("raw: levels", RuntimeError, "pyramid_sum: expected 1 to 32 levels, got 33",
         lambda device: pyramid_sum_native(*[torch.zeros(1, 1, 1, 1, 1, device=device)] * 33, [1, 1, 1])),
        ("raw: shape", RuntimeError, r"levels must have one B and C, got \(1, 1, 1, 1, 1\) and \(1, 2, 1, 1, 1\)",
         lambda device: pyramid_sum_native(
             torch.zeros(1, 1, 1, 1, 1, device=device), torch.zeros(1, 2, 1, 1, 1, device=device), [1, 1, 1])),
    ],
)  # fmt: skip

PYRAMID_SUM_BACKWARD = Op(
    name="pyramid_sum_backward",
    native=pyramid_sum_backward_native,
    reference=pyramid_sum_backward_reference,
    samples=samples(gradient),
    empty=Sample("no rows", gradient((0, 3), [(1, 1, 1), (1, 2, 2)], (1, 2, 2))),
    differentiable=(0,),
    gradcheck=lambda *args: tuple(pyramid_sum_backward_native(*args)),
    keeps_layout=True,
    errors=[
        ("grids", RuntimeError, "grids must be t, h, w of every level, got 2 numbers",
         lambda device: pyramid_sum_backward_native(torch.zeros(1, 1, 1, 1, 1, device=device), [1, 1])),
        ("shape", RuntimeError, r"pyramid_sum_backward: grad must be .*got \(2, 3\)",
         lambda device: pyramid_sum_backward_native(torch.zeros(2, 3, device=device), [1, 1, 1])),
    ],
)  # fmt: skip

OPS = (PYRAMID_SUM, PYRAMID_SUM_BACKWARD)
