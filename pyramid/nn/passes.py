"""Work on frames alone, a few frames and one tile of them at a time, when nothing is to be learned from it.

What a network keeps at pixel resolution decides what inference needs in memory; and what fits in a CPU's cache is
computed up to twice as fast (docs/experiments.md). Frames are independent here, so taking a few of them at a time
changes nothing. A tile is cut with a rim as wide as the network sees, which is thrown away afterwards: no seams, and
the result is that of the whole frame, up to the rounding of convolutions of another size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PASS_PIXELS = 1 << 16  # of a CPU's pass; 128x128 is then taken four frames at a time, anything above 181x181 alone


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in latent cells: it gives `start` .. `stop`, and is worked on from `first` to `last`."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def kept(self) -> tuple[int, int]:
        """Where what it gives lies in what is worked on."""
        return self.start - self.first, self.stop - self.first


def spans(size: int, side: int, rim: int) -> list[Span]:
    """Tiles of `side` cells, and a rim of `rim` cells where there are so many, over an axis of `size` cells.

    >>> spans(10, 8, 1)
    [Span(start=0, stop=8, first=0, last=9), Span(start=8, stop=10, first=7, last=10)]
    """
    starts = range(0, size, side)
    return [Span(a, min(a + side, size), max(0, a - rim), min(a + side + rim, size)) for a in starts]


def in_passes(
    network: Callable[[Tensor], Tensor], x: Tensor, *, cells: tuple[int, int], stride: int, tile: int | None, rim: int
) -> Tensor:
    """`network` of all frames, in passes.

    `network`: frames (B, t, H, W, C) -> (B, t, H', W', C'), every frame alone, every place from what is at most `rim`
    latent cells away. `x`: its input (B, T, H, W, C); H and W, and H' and W', are multiples of the frame's latent
    `cells`. `stride`: pixels a side of a cell; `tile`: pixels a side of a tile, None for whole frames.
    """
    if torch.is_grad_enabled():
        return network(x)
    out: Tensor | None = None
    before = x.shape[2] // cells[0]
    for rows, columns, frames in _passes(x, cells, stride, tile, rim):
        part = x[:, frames, rows.first * before : rows.last * before, columns.first * before : columns.last * before]
        y = network(part)
        after = y.shape[2] // (rows.last - rows.first)
        if y.shape[1] == x.shape[1] and y.shape[2:4] == (cells[0] * after, cells[1] * after):
            return y
        if out is None:
            out = y.new_empty(*x.shape[:2], cells[0] * after, cells[1] * after, y.shape[4])
        (top, bottom), (left, right) = rows.kept, columns.kept
        out[:, frames, rows.start * after : rows.stop * after, columns.start * after : columns.stop * after] = y[
            :, :, top * after : bottom * after, left * after : right * after
        ]
    assert out is not None
    return out


def _passes(
    x: Tensor, cells: tuple[int, int], stride: int, tile: int | None, rim: int
) -> Iterator[tuple[Span, Span, slice]]:
    side = max(cells) if tile is None else max(1, tile // stride)
    for rows in spans(cells[0], side, rim):
        for columns in spans(cells[1], side, rim):
            pixels = x.shape[0] * (rows.last - rows.first) * (columns.last - columns.first) * stride * stride
            at_once = x.shape[1] if x.is_cuda else max(1, PASS_PIXELS // pixels)
            for first in range(0, x.shape[1], at_once):
                yield rows, columns, slice(first, first + at_once)
