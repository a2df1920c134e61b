"""What the pixels look like so far: for each token, the latents that are known at its place when its turn comes.

The latent at the detail of the chunk's coarser levels (VAR, 2404.02905, feeds the same to its next scale); the last
`history` latent frames of the chunk before; and, where a condition hints at the clip, the hint's latent and the share
of it that is known. All of them are resampled to the block's grid. Beside the latents stand *copies*: the code that the
token would have if the chunk stood still as the last one ended, or were the hint, given what the coarser levels have
said. What does not change is then a matter of saying so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lm.conditions import Condition
from lm.layout import Block
from pyramid import ops
from pyramid.tokenizer import PyramidTokenizer


@dataclass(frozen=True, eq=False)
class Seen:
    """What the tokens of a block see: `latent` (B, n, F), F = `context_dim`; `copies`, by reference ("before", "hint"):
    ids (B, n) of the copying codes, and how far each is to be believed, (B, n, 1) from 0 to 1."""

    latent: Tensor
    copies: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def context_dim(latent_dim: int, history: int, hints: bool) -> int:
    """Numbers a token."""
    return latent_dim * (1 + history) + (latent_dim + 1) * hints


def hint_latents(tokenizer: PyramidTokenizer, condition: Condition) -> list[Tensor]:
    """Of each chunk (B, D + 1, T, h, w): the hint's latent where something is known, and the known share."""
    if condition.hint is None:
        return []
    c, latents = tokenizer.config, []
    for index, (ids, share) in enumerate(zip(condition.hint.ids, condition.share, strict=True)):
        grid = tokenizer.latent_grid(condition.hint.height, condition.hint.width, first=index == 0)
        latent = tokenizer.levels.decode([level.to(tokenizer.device) for level in ids], grid)
        share = share.to(latent)[:, None]
        latents.append(torch.cat([latent * (share > 0), share], dim=1))
    assert latents[0].shape[1] == c.latent_dim + 1
    return latents


class LatentContext:
    """Walks over the blocks of a batch in order: `at(block)` before its codes are known, where it is to be looked at,
    `add(block, codes)` after. `history`: latent frames of the chunk before that are shown; `copies`: whether copying
    codes are; `hints`: whether there is room for a hint, `shown` the hint's latents (`hint_latents`), of no chunk where
    there is none."""

    def __init__(
        self,
        tokenizer: PyramidTokenizer,
        batch_size: int,
        height: int,
        width: int,
        *,
        history: int = 1,
        copies: bool = False,
        hints: bool = False,
        shown: Sequence[Tensor] = (),
    ) -> None:
        c = tokenizer.config
        self.levels = tokenizer.levels
        self.shape = (batch_size, c.latent_dim)
        self.space = (-(-height // c.stride), -(-width // c.stride))
        self.chunk_latents = c.chunk_frames // c.time_stride
        self.device = tokenizer.device
        self.history, self.copies, self.hints, self.shown = history, copies, hints, shown
        self.chunk = 0
        self.cells: list[Tensor] = []  # of the chunk's levels so far
        self.known = self._zeros(1)
        self.before = self._zeros(history)

    def _zeros(self, t: int) -> Tensor:
        return torch.zeros(*self.shape, t, *self.space, device=self.device)

    @torch.no_grad()
    def at(self, block: Block) -> Seen:
        """What the block sees."""
        self._enter(block)
        t, h, w = block.grid
        before = ops.level_resample(self.before, (self.history, h, w)).flatten(1, 2)
        parts = [ops.level_resample(self.known, block.grid), before[:, :, None].expand(-1, -1, t, -1, -1)]
        hint = self.shown[block.chunk] if self.shown else None
        if self.hints:
            dim = self.shape[1] + 1
            empty = torch.zeros(self.shape[0], dim, *block.grid, device=self.device)
            parts.append(empty if hint is None else ops.level_resample(hint, block.grid))
        latent = torch.cat(parts, dim=1).flatten(2).transpose(1, 2)
        copies = {}
        if self.copies and not self.levels.levels[block.level].given:
            if block.chunk:
                still = self.before[:, :, -1:].expand(-1, -1, self.known.shape[2], -1, -1)
                copies["before"] = (self._copy(still), torch.ones(*latent.shape[:2], 1, device=self.device))
            if hint is not None:
                copies["hint"] = (self._copy(hint[:, :-1]), latent[..., -1:])
        return Seen(latent, copies)

    def _enter(self, block: Block) -> None:
        """The block may be the first of a new chunk."""
        if block.chunk != self.chunk:
            self.before = torch.cat([self.before, self.known], dim=2)[:, :, -self.history :]
            self.known, self.cells = self._zeros(self.chunk_latents), []
            self.chunk = block.chunk

    def _copy(self, latent: Tensor) -> Tensor:
        """The codes (B, n) of the next level that bring what is known so far nearest to a latent."""
        return self.levels.answer(latent.contiguous(), self.cells).flatten(1)

    @torch.no_grad()
    def add(self, block: Block, codes: Tensor) -> None:
        """codes (B, n) int64 of the block."""
        self._enter(block)
        part = self.levels.levels[block.level]
        values = part.quantizer.ids_to_codes(codes.reshape(-1, *block.grid))
        self.cells.append(part.cells(values))
        self.known = self.levels.combine(self.cells, self.known.shape[2:])
