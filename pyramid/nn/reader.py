"""Reads the words of a chunk off the encoder's features: a point of the word table's space for each position of the
word levels.

A set decoder (DETR, 2005.12872, section 3.2): every position has a question of its own, a learned vector, which looks
at all cells of the chunk (cross-attention) and at the other questions (self-attention), so that two positions that see
the same three objects need not name the same one. After equal training it names 0.70 of a caption's words, where the
pooled features give 0.41 (docs/experiments.md).

It reads windows of the chunk size that it was built for, one for each cell that a level of one word has there: frames
of any size are covered by as many windows as fit, and cost as much each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyramid import ops
from pyramid.levels import Level, dilated_positions

# Shapes: B chunks, T H W latent grid, C features, Q questions, E the word table's space; t h w a level's grid.

_HEAD_DIM = 64


class ReaderLayer(nn.Module):
    """Questions (B, Q, C) look at cells (B, N, C), at each other, and think; pre-norm (2002.04745)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = math.gcd(dim, max(1, dim // _HEAD_DIM))
        self.norm_cross, self.norm_self, self.norm_mlp = (nn.LayerNorm(dim) for _ in range(3))
        self.query, self.value, self.cross = (nn.Linear(dim, dim) for _ in range(3))
        self.key = nn.Linear(dim, dim, bias=False)  # a bias would add the same to all cells, which softmax takes away
        self.query_key_value, self.self_ = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.gelu, self.down = nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, cells: Tensor, places: Tensor) -> Tensor:
        """`places` (N, C): added to the cells where they are looked up, not where they are read."""
        x = x + self.cross(self._attend(self.query(self.norm_cross(x)), self.key(cells + places), self.value(cells)))
        x = x + self.self_(self._attend(*self.query_key_value(self.norm_self(x)).chunk(3, dim=-1)))
        return x + self.down(self.gelu(self.up(self.norm_mlp(x))))

    def _attend(self, *query_key_value: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in query_key_value)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class WordReader(nn.Module):
    """Of word levels with the grids `levels` in a chunk of the latent grid `reference`; `dim`: C; `word_dim`: E."""

    def __init__(
        self, levels: Sequence[Level], reference: tuple[int, int, int], dim: int, word_dim: int, depth: int
    ) -> None:
        super().__init__()
        self.levels, self.reference = tuple(levels), reference
        self.norm = nn.LayerNorm(dim)
        self.places = nn.Parameter(0.1 * torch.randn(math.prod(reference), dim))
        self.questions = nn.Parameter(0.5 * torch.randn(sum(level.count for level in levels), dim))
        self.layers = nn.ModuleList(ReaderLayer(dim) for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, word_dim))
        nn.init.normal_(self.head[1].weight, std=0.1 / math.sqrt(dim))  # start amid the words, not far outside

    def forward(self, features: Tensor, grids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Features (B, T, H, W, C) of one chunk -> a point (B, t, h, w, E) for each position of the word levels, whose
        grids in this chunk are `grids`."""
        windows = Level(1, 1, 1).at(features.shape[1:4], self.reference).grid
        sides = [n * side for n, side in zip(windows, self.reference, strict=True)]
        x = self.norm(features)
        if sides != list(x.shape[1:4]):
            x = ops.level_resample(x.movedim(-1, 1), sides).movedim(1, -1)
        cells = _cut(x, windows).flatten(1, 3)
        said = self.questions.to(cells.dtype).expand(len(cells), -1, -1)
        for layer in self.layers:
            said = layer(said, cells, self.places.to(cells.dtype))
        parts = self.head(said).split([level.count for level in self.levels], dim=1)
        return [
            _pick(_join(part.unflatten(1, level.grid), windows), grid)
            for part, level, grid in zip(parts, self.levels, grids, strict=True)
        ]


def _cut(x: Tensor, windows: Sequence[int]) -> Tensor:
    """(B, a T, b H, c W, C) -> (B a b c, T, H, W, C) for windows (a, b, c)"""
    a, b, c = windows
    x = x.unflatten(3, (c, -1)).unflatten(2, (b, -1)).unflatten(1, (a, -1))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(0, 3)


def _join(x: Tensor, windows: Sequence[int]) -> Tensor:
    """The inverse of `_cut`."""
    x = x.unflatten(0, (-1, *windows)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.flatten(5, 6).flatten(3, 4).flatten(1, 2)


def _pick(x: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, t', h', w', E) on another grid, each cell of it that of its middle: the mean of two words is no word."""
    for axis, (found, wanted) in enumerate(zip(x.shape[1:4], grid, strict=True), start=1):
        if found != wanted:
            x = x.index_select(axis, torch.tensor(dilated_positions(wanted, found), device=x.device))
    return x
