"""What the pixels look like so far: for each token, the latent that is known at its place when its turn comes.

Two vectors: the latent at the detail of the chunk's coarser levels (VAR, 2404.02905, feeds the same to its next
scale), and the last latent frame of the chunk before. Both come from the frozen tokenizer and are resampled to the
block's grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lm.layout import Block
from pyramid import ops
from pyramid.tokenizer import PyramidTokenizer


class LatentContext:
    """Walks over the blocks of a batch in order: `at(block)` before its codes are known, `add(block, codes)` after."""

    def __init__(self, tokenizer: PyramidTokenizer, batch_size: int, height: int, width: int) -> None:
        c = tokenizer.config
        self.levels = tokenizer.levels
        self.shape = (batch_size, c.latent_dim)
        self.space = (-(-height // c.stride), -(-width // c.stride))
        self.chunk_latents = c.chunk_frames // c.time_stride
        self.device = tokenizer.device
        self.chunk = 0
        self.cells: list[Tensor] = []  # of the chunk's levels so far
        self.known = self._zeros(1)
        self.before = self._zeros(1)

    def _zeros(self, t: int) -> Tensor:
        return torch.zeros(*self.shape, t, *self.space, device=self.device)

    @torch.no_grad()
    def at(self, block: Block) -> Tensor:
        """(B, n, 2 D)"""
        if block.chunk != self.chunk:
            self.before, self.known = self.known[:, :, -1:], self._zeros(self.chunk_latents)
            self.cells = []
            self.chunk = block.chunk
        before = ops.level_resample(self.before, (1, *block.grid[1:])).expand(-1, -1, block.grid[0], -1, -1)
        known = ops.level_resample(self.known, block.grid)
        return torch.cat([known, before], dim=1).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def add(self, block: Block, codes: Tensor) -> None:
        """codes (B, n) int64 of the block."""
        part = self.levels.levels[block.level]
        values = part.quantizer.ids_to_codes(codes.reshape(-1, *block.grid))
        self.cells.append(part.cells(values))
        self.known = self.levels.combine(self.cells, self.known.shape[2:])
