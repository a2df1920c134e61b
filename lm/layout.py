"""Layout of a sequence: which block stands where, who sees whom, and where in the video each token is. Pure values.

    generate:  [pad ...] [task] [detail] [text]  [chunk 0: level 1 .. k] [chunk 1: level 1 .. k] ...
    caption:   [task] [detail]  [chunk 0: level 1 .. k] ...  [text] [end]

A *block* is the tokens of one level of one chunk. Text is causal; a block sees all that came before it and itself in
both directions. In training the blocks stand twice: a clean copy, which later blocks see, and a masked copy behind it,
which sees the clean blocks before its own and itself - two intervals a query.
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
    """Tokens [start, stop) of the blocks' own sequence: level `level` (from 0) of chunk `chunk`, grid (t, h, w)."""

    chunk: int
    level: int
    start: int
    stop: int
    grid: tuple[int, int, int]

    @property
    def count(self) -> int:
        return self.stop - self.start


def blocks_of(pyramids: Sequence[Pyramid], detail: int) -> list[Block]:
    """The blocks of a clip at a detail, in order."""
    blocks: list[Block] = []
    start = 0
    for chunk, pyramid in enumerate(pyramids):
        for level, grid in enumerate(pyramid.prefix(detail).levels):
            blocks.append(Block(chunk, level, start, start + grid.count, grid.grid))
            start += grid.count
    return blocks


def num_block_tokens(blocks: Sequence[Block]) -> int:
    return blocks[-1].stop if blocks else 0


@lru_cache(maxsize=1024)
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
    """Clean blocks that start at position `offset`: each sees all before it and itself. (B, N, 4)"""
    stop = torch.cat([torch.full((b.count,), offset + b.stop) for b in blocks]).to(pads.device)
    start = pads[:, None].expand(-1, len(stop))
    stop = stop.expand_as(start)
    return torch.stack([start, stop, stop, stop], dim=-1)


def masked_intervals(blocks: Sequence[Block], pads: Tensor, offset: int, masked_offset: int) -> Tensor:
    """Masked copies that start at `masked_offset`, of blocks whose clean copies start at `offset`: each sees all before
    the clean copy, and itself. (B, N, 4)"""

    def column(values: list[int]) -> Tensor:
        counts = torch.tensor([b.count for b in blocks])
        return torch.tensor(values).repeat_interleave(counts).to(pads.device)

    start = pads[:, None].expand(-1, sum(b.count for b in blocks))
    before = column([offset + b.start for b in blocks]).expand_as(start)
    own = column([masked_offset + b.start - blocks[0].start for b in blocks]).expand_as(start)
    own_stop = column([masked_offset + b.stop - blocks[0].start for b in blocks]).expand_as(start)
    return torch.stack([start, before, own, own_stop], dim=-1)


def text_intervals(offset: int, length: int, batch: int, device: torch.device) -> Tensor:
    """Causal text that starts at position `offset` and sees all before it: (B, length, 4)."""
    stop = torch.arange(offset + 1, offset + length + 1, device=device).expand(batch, length)
    return torch.stack([torch.zeros_like(stop), stop, stop, stop], dim=-1)
