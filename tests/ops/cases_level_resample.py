"""Rows of level_resample and its backward."""

from __future__ import annotations

import torch
from ops.case import Make, Op, Sample, randn

from pyramid import ops
from pyramid.ops import reference

Grid = tuple[int, int, int]


def level(lead: tuple[int, int], grid: Grid, size: Grid, *, channels_last: bool = False) -> Make:
    def make(dtype, device):
        x = randn((*lead, *grid), dtype, device)
        if channels_last:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        return x, list(size)

    return make


def samples() -> list[Sample]:
    """A gradient goes the way back, so the same samples serve the backward."""
    both = [
        Sample("down", level((2, 3), (2, 4, 6), (1, 2, 2))),
        Sample("uneven", level((1, 2), (3, 5, 4), (2, 3, 7))),
        Sample("up", level((2, 5), (1, 3, 4), (4, 9, 8))),
        Sample("one cell of all", level((3, 7), (4, 9, 21), (1, 1, 1))),
        Sample("all of one cell", level((3, 2), (1, 1, 1), (4, 9, 21))),
        Sample("wide rows", level((1, 2), (2, 3, 131), (2, 2, 67))),
        Sample("same grid", level((1, 3), (2, 3, 33), (2, 3, 33))),
    ]
    last = [
        Sample("down, channels last", level((2, 37), (2, 4, 6), (1, 2, 3), channels_last=True)),
        Sample("uneven, channels last", level((2, 135), (3, 5, 4), (2, 3, 7), channels_last=True)),
        Sample("up, channels last", level((2, 64), (1, 3, 4), (4, 9, 8), channels_last=True)),
        Sample("one cell of all, channels last", level((2, 80), (4, 9, 21), (1, 1, 1), channels_last=True)),
        Sample("all of one cell, channels last", level((3, 16), (1, 1, 1), (4, 9, 21), channels_last=True)),
    ]
    return both + last


def level_resample_native(x, size):
    return torch.ops.pyramid.level_resample.default(x, size)


def level_resample_backward_native(grad, size):
    return torch.ops.pyramid.level_resample_backward.default(grad, size)


LEVEL_RESAMPLE = Op(
    name="level_resample",
    native=level_resample_native,
    reference=reference.level_resample,
    samples=samples(),
    empty=Sample("no rows", level((0, 4), (2, 3, 4), (1, 2, 8))),
    differentiable=(0,),
    gradcheck=level_resample_native,
    keeps_layout=True,  # or a view of a channels-last tensor would be turned over twice
    errors=[
        ("shape", ValueError, r"expected x \(B, C, t, h, w\).*got \(2, 3\)",
         lambda device: ops.level_resample(torch.zeros(2, 3, device=device), (1, 1, 1))),
        ("empty axis", ValueError, r"without an empty axis, got \(2, 3, 1, 0, 1\)",
         lambda device: ops.level_resample(torch.zeros(2, 3, 1, 0, 1, device=device), (1, 1, 1))),
        ("size", ValueError, r"each at least 1, got \(1, 0, 1\)",
         lambda device: ops.level_resample(torch.zeros(2, 3, 1, 1, 1, device=device), (1, 0, 1))),
        ("integers", TypeError, "got torch.int64",
         lambda device: ops.level_resample(torch.zeros(2, 3, 1, 1, 1, device=device).long(), (1, 1, 1))),
        ("raw: shape", RuntimeError, r"level_resample: x must be .*got \(2, 3\)",
         lambda device: level_resample_native(torch.zeros(2, 3, device=device), [1, 1, 1])),
        ("raw: size", RuntimeError, r"level_resample: size must be .*got \(1, 0, 1\)",
         lambda device: level_resample_native(torch.zeros(2, 3, 1, 1, 1, device=device), [1, 0, 1])),
        ("raw: integers", RuntimeError, "level_resample: x must be float32.*got Long",
         lambda device: level_resample_native(torch.zeros(2, 3, 1, 1, 1, device=device).long(), [1, 1, 1])),
    ],
)  # fmt: skip

LEVEL_RESAMPLE_BACKWARD = Op(
    name="level_resample_backward",
    native=level_resample_backward_native,
    reference=reference.level_resample_backward,
    samples=samples(),
    empty=Sample("no rows", level((0, 4), (2, 3, 4), (1, 2, 8))),
    differentiable=(0,),
    gradcheck=level_resample_backward_native,
    keeps_layout=True,
    errors=[
        ("shape", RuntimeError, r"level_resample_backward: grad must be .*got \(2, 3\)",
         lambda device: level_resample_backward_native(torch.zeros(2, 3, device=device), [1, 1, 1])),
        ("size", RuntimeError, r"level_resample_backward: size must be .*got \(1, 1\)",
         lambda device: level_resample_backward_native(torch.zeros(2, 3, 1, 1, 1, device=device), [1, 1])),
    ],
)  # fmt: skip

OPS = (LEVEL_RESAMPLE, LEVEL_RESAMPLE_BACKWARD)
