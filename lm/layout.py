"""Layout of a sequence: which block stands where, who sees whom, and where in the video each token is. Pure values.

    generate:  [pad ...] [task] [detail] [text]  [chunk 0: level 1 .. k] [chunk 1: level 1 .. k] ...
    caption:   [task] [detail]  [chunk 0: level 1 .. k] ...  [text] [end]
    ask:       [task] [detail]  [chunk 0: level 1 .. k] ...  [pad ...] [question] [answer] [end]

A *block* is the tokens of one level of one chunk. Text is causal; a block sees the text, the *remembered* blocks that
came before it, and itself in both directions. A model remembers the first `memory` levels of every chunk, or all; what
finer levels say is known to later blocks through the latent alone (context.py), so that most tokens of a clip are never
looked back at. In training the blocks stand twice: a clean copy of the remembered ones, and masked copies behind it,
each of which sees the clean blocks before its own and itself - two intervals a query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pyramid.levels import Pyramid

NUM_FEATURES = 2 + 3 * 8


@dataclass(frozen=True)
class Block:
    """Tokens of level `level` (from 0) of chunk `chunk`, on a grid (t, h, w). `start`: how many remembered tokens of
    blocks come before; `remembered`: whether later blocks see this one."""

    chunk: int
    level: int
    start: int
    grid: tuple[int, int, int]
    remembered: bool = True

    @property
    def count(self) -> int:
        return math.prod(self.grid)

    @property
    def stop(self) -> int:
        return self.start + self.count


def blocks_of(pyramids: Sequence[Pyramid], detail: int, memory: int | None = None) -> list[Block]:
    """The blocks of a clip at a detail, in order; `memory`: levels that are remembered, all by default."""
    blocks: list[Block] = []
    start = 0
    for chunk, pyramid in enumerate(pyramids):
        for level, grid in enumerate(pyramid.prefix(detail).levels):
            remembered = memory is None or level < memory
            blocks.append(Block(chunk, level, start, grid.grid, remembered))
            start += grid.count if remembered else 0
    return blocks


def num_remembered(blocks: Sequence[Block]) -> int:
    """Tokens of blocks that are remembered."""
    return sum(block.count for block in blocks if block.remembered)


@lru_cache(maxsize=1024)
@torch.inference_mode(False)  # it may be trained with later
def position_features(chunk: int, grid: tuple[int, int, int]) -> Tensor:
    """Where each token of a block is, float32 (n, NUM_FEATURES): which chunk, and its centre in time, height and width
    of the chunk as sines and cosines. Any grid works; equal places of different levels have equal features. Computed
    once a block: don't write into it."""
    sides = [(torch.arange(n) + 0.5) / n for n in grid]
    centres = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).reshape(-1, 3)
    angles = centres[..., None] * (math.pi * 2.0 ** torch.arange(4))
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    where = torch.tensor([float(chunk == 0), math.log1p(chunk)]).expand(len(waves), 2)
    return torch.cat([where, waves], dim=1)


def prefix_intervals(pads: Tensor, length: int) -> Tensor:
    """Causal text behind `pads` (B,) pad tokens: (B, length, 4)."""
    stop = torch.arange(1, length + 1, device=pads.device).expand(len(pads), length)
    start = torch.minimum(pads[:, None].expand_as(stop), stop)
    return torch.stack([start, stop, stop, stop], dim=-1)


def clean_intervals(blocks: Sequence[Block], pads: Tensor, offset: int) -> Tensor:
    """Blocks where they stand, the sequence of the remembered ones starting at position `offset`: each sees all before
    it and itself. (B, N, 4)"""
    stop = torch.cat([torch.full((b.count,), offset + b.stop) for b in blocks]).to(pads.device)
    start = pads[:, None].expand(-1, len(stop))
    stop = stop.expand_as(start)
    return torch.stack([start, stop, stop, stop], dim=-1)


def masked_intervals(blocks: Sequence[Block], pads: Tensor, offset: int, masked_offset: int) -> Tensor:
    """Masked copies, one behind the other from `masked_offset` on, of blocks whose remembered ones have clean copies
    from `offset` on: each sees all before its place there, and itself. (B, N, 4)"""
    counts = torch.tensor([b.count for b in blocks])
    ends = masked_offset + counts.cumsum(0)

    def column(values: Tensor) -> Tensor:
        return values.repeat_interleave(counts).to(pads.device)

    start = pads[:, None].expand(-1, int(counts.sum()))
    before = column(torch.tensor([offset + b.start for b in blocks])).expand_as(start)
    own, own_stop = (column(values).expand_as(start) for values in (ends - counts, ends))
    return torch.stack([start, before, own, own_stop], dim=-1)


def places_of(blocks: Sequence[Block], offset: int) -> Tensor:
    """Positions of the tokens of blocks, int64 (N,), the sequence of the remembered ones starting at `offset`."""
    return torch.cat([torch.arange(offset + b.start, offset + b.stop) for b in blocks])


def text_intervals(clip: int, begin: Tensor, offset: int, length: int) -> Tensor:
    """Causal text from position `offset` on that sees the clip, the first `clip` positions, and what of its own comes
    before it, from position `begin` on, (B, length) or (B, 1): neither pads nor another text. (B, length, 4)"""
    stop = torch.arange(offset + 1, offset + length + 1, device=begin.device).expand(len(begin), length)
    own = torch.minimum(begin.expand_as(stop), stop)
    return torch.stack([torch.zeros_like(stop), torch.full_like(stop, clip), own, stop], dim=-1)
