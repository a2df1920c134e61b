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

Network = Callable[[Tensor, slice], Tensor]
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


class Passes:
    """How frames of latent `cells` (h, w) are worked on: in tiles of `tile` pixels a side (None: whole frames) with a
    rim of `rim` cells, a few frames at a time. `stride`: pixels a side of a cell."""

    def __init__(self, cells: tuple[int, int], stride: int, tile: int | None, rim: int) -> None:
        self.cells, self.stride, self.rim = cells, stride, rim
        self.side = max(cells) if tile is None else max(1, tile // stride)

    @property
    def whole(self) -> bool:
        """Whether a pass sees whole frames."""
        return self.side >= max(self.cells)

    def __call__(self, network: Network, x: Tensor) -> Tensor:
        """`network` of all frames. It maps a part of them, (B, t, H, W, C) and which frames they are, to (B, t, H', W',
        C'): every frame alone, every place from what is at most `rim` latent cells away. `x` (B, T, H, W, C): its
        input; H and W, and H' and W', are multiples of `cells`."""
        out: Tensor | None = None
        for rows, columns, frames, y in self.parts(network, x):
            height, width = (cells * y.shape[2] // (rows.stop - rows.start) for cells in self.cells)
            if y.shape[1:4] == (x.shape[1], height, width):
                return y
            if out is None:
                out = y.new_empty(*x.shape[:2], height, width, y.shape[4])
            scale = height // self.cells[0]
            out[:, frames, rows.start * scale : rows.stop * scale, columns.start * scale : columns.stop * scale] = y
        assert out is not None
        return out

    def parts(self, network: Network, x: Tensor) -> Iterator[tuple[Span, Span, slice, Tensor]]:
        """What each pass gives, without its rim, and where it belongs."""
        before = x.shape[2] // self.cells[0]
        for rows in spans(self.cells[0], self.side, self.rim):
            for columns in spans(self.cells[1], self.side, self.rim):
                part = x[:, :, rows.first * before : rows.last * before, columns.first * before : columns.last * before]
                for frames in self._frames(x, (rows.last - rows.first) * (columns.last - columns.first)):
                    y = network(part[:, frames], frames)
                    after = y.shape[2] // (rows.last - rows.first)
                    (top, bottom), (left, right) = rows.kept, columns.kept
                    y = y[:, :, top * after : bottom * after, left * after : right * after]
                    yield rows, columns, frames, y

    def _frames(self, x: Tensor, cells: int) -> list[slice]:
        """Frames of a pass: all of them where something is to be learned, or a GPU to be kept busy."""
        num_frames = x.shape[1]
        at_once = max(1, PASS_PIXELS // (x.shape[0] * cells * self.stride**2))
        if torch.is_grad_enabled() or x.is_cuda:
            at_once = num_frames
        return [slice(first, min(first + at_once, num_frames)) for first in range(0, num_frames, at_once)]
