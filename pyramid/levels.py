"""Geometry of the pyramid: which grid each level has, and where its tokens stand in a flat sequence. Pure Python.

A *level* is one resolution of the pyramid of one chunk, coarse first; its grid (t, h, w) counts tokens in time,
height and width. A clip is a list of chunks: the first frame alone (an image), then runs of `chunk_frames` frames;
all chunks have the same number of levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

Chunk = TypeVar("Chunk")


@dataclass(frozen=True)
class Level:
    """Grid of one level, in tokens."""

    t: int
    h: int
    w: int

    def __post_init__(self) -> None:
        if min(self.t, self.h, self.w) < 1:
            raise ValueError(f"Level: every side of the grid must be at least 1, got {self.grid}")

    @property
    def grid(self) -> tuple[int, int, int]:
        return (self.t, self.h, self.w)

    @property
    def count(self) -> int:
        """Tokens of the level."""
        return self.t * self.h * self.w

    def at(self, latent: Sequence[int], reference: Sequence[int]) -> Level:
        """This level's grid for a latent of another size: sides in proportion to the `reference` latent (t, h, w)
        that the level was written for, at least 1 and at most the latent's."""
        sides = (
            min(size, max(1, (2 * side * size + whole) // (2 * whole)))
            for side, size, whole in zip(self.grid, latent, reference, strict=True)
        )
        return Level(*sides)


def dilated_positions(cells: int, size: int) -> list[int]:
    """Where `cells` cells stand on an axis of `size` positions: the middles of as many equal parts, floored.

    >>> dilated_positions(2, 16)
    [4, 12]
    """
    return [(2 * i + 1) * size // (2 * cells) for i in range(cells)]


@dataclass(frozen=True)
class Pyramid:
    """The levels of one chunk, coarse first."""

    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.levels:
            raise ValueError("Pyramid: expected at least one level, got none")

    @property
    def num_levels(self) -> int:
        return len(self.levels)

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each level."""
        return tuple(level.count for level in self.levels)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each level starts in the flat sequence of the chunk, and, last, the sequence's length."""
        return (0, *accumulate(self.counts))

    @property
    def num_tokens(self) -> int:
        return sum(self.counts)

    def prefix(self, detail: int) -> Pyramid:
        """The first `detail` levels. Raises ValueError unless 1 <= detail <= num_levels."""
        return Pyramid(self.levels[: check_detail(detail, self.num_levels, "Pyramid.prefix")])


def check_detail(detail: int | None, num_levels: int, who: str) -> int:
    """`detail`, or `num_levels` for None. Raises ValueError, naming `who`, unless 1 <= detail <= num_levels."""
    if detail is None:
        return num_levels
    if not 1 <= detail <= num_levels:
        raise ValueError(f"{who}: detail must be from 1 to {num_levels}, got {detail}")
    return detail


def chunk_lengths(num_frames: int, chunk_frames: int) -> list[int]:
    """Pixel frames of each chunk of a clip: 1, then runs of `chunk_frames`, the last one as long as what is left.
    Raises ValueError unless both are at least 1.

    >>> chunk_lengths(12, 8)
    [1, 8, 3]
    """
    if num_frames < 1:
        raise ValueError(f"chunk_lengths: a clip must have at least one frame, got {num_frames}")
    if chunk_frames < 1:
        raise ValueError(f"chunk_lengths: a chunk must have at least one frame, got {chunk_frames}")
    full, rest = divmod(num_frames - 1, chunk_frames)
    return [1, *[chunk_frames] * full, *([rest] if rest else [])]


def in_order(
    chunks: Iterable[Chunk], shape: Callable[[Chunk], tuple[int, int, int, int]], chunk_frames: int, who: str
) -> Iterator[Chunk]:
    """The chunks of one clip, each checked as it comes; `shape` gives its (B, T, H, W).

    Raises ValueError, naming `who` and the chunk, unless the first has one frame, every other one `chunk_frames` (the
    last at most so many), and batch, height and width stay.
    """
    frames, size = 0, None
    for index, chunk in enumerate(chunks):
        b, t, h, w = shape(chunk)
        most = chunk_frames if index else 1
        if index > 1 and frames != chunk_frames:
            raise ValueError(f"{who}: chunk {index - 1} is not the last: expected {chunk_frames} frames, got {frames}")
        if t > most:
            raise ValueError(f"{who}: chunk {index}: expected at most {most} frames, got {t}")
        if size not in (None, (b, h, w)):
            raise ValueError(f"{who}: chunk {index}: expected batch, height, width {size}, got {(b, h, w)}")
        frames, size = t, (b, h, w)
        yield chunk
