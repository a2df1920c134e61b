"""Drawing ids from logits: guidance, temperature, nucleus, and seeds that give a row the same draw in any batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lm.decoding import Decoding


def guidance_weights(decoding: Decoding, branches: int, level: int, num_levels: int) -> tuple[float, ...]:
    """What the logits of each branch count for at a level (from 0); they sum to 1. Branches: all that is asked; without
    the text (or with the negative one); without anything."""
    first, last = decoding.ramp
    share = first + (last - first) * level / max(1, num_levels - 1)
    text, given = (1 + (scale - 1) * share for scale in (decoding.guidance, decoding.guidance_given))
    return {1: (1.0,), 2: (text, 1 - text), 3: (text, given - text, 1 - given)}[branches]


def keep_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits (..., K) with those outside the nucleus at -inf (2020, 1904.09751); the most likely id always stays."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probability = ordered.softmax(dim=-1)
    outside = probability.cumsum(dim=-1) - probability >= top_p
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))


class Sampler:
    """Draws for B clips, each with a generator of its own: clip i depends on `seeds[i]` alone, not on its neighbours.

    The logits come for as many rows a clip as there are `weights`, branch by branch, and the rows of a clip get the
    same answer. `weights`, `temperature` and `top_p` may be set anew for each level; `scores`: whether the likelihood
    of what is drawn is added up (`take_score`).
    """

    def __init__(self, seeds: list[int], device: torch.device) -> None:
        self.device = device
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.weights: tuple[float, ...] = (1.0,)
        self.temperature, self.top_p = 1.0, 1.0
        self.scores = False
        self._score: Tensor | float = 0.0

    @property
    def num_rows(self) -> int:
        return len(self.generators) * len(self.weights)

    def spread(self, values: Tensor) -> Tensor:
        """(B, ...) -> the same for each row of a clip."""
        return values.repeat(len(self.weights), *[1] * (values.dim() - 1))

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) numbers in [0, 1)."""
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators]).to(self.device)

    def gumbel(self, *shape: int) -> Tensor:
        """(B, *shape) of the standard Gumbel distribution."""
        return self.uniform(*shape).clamp_(min=1e-20).log_().neg_().clamp_(min=1e-20).log_().neg_()

    def take_score(self) -> Tensor:
        """Log-probability (B, n) of the draws since it was last asked for."""
        score, self._score = self._score, 0.0
        assert isinstance(score, Tensor)  # asked for after a draw
        return score

    def __call__(self, logits: Tensor) -> Tensor:
        """(rows, n, K) -> ids (rows, n)."""
        branches = logits.float().chunk(len(self.weights))
        mixed = sum(weight * branch for weight, branch in zip(self.weights, branches, strict=True))
        assert isinstance(mixed, Tensor)
        if self.temperature == 0:
            ids = mixed.argmax(dim=-1)
        else:
            mixed = keep_nucleus(mixed / self.temperature, self.top_p)
            # The Gumbel trick: the largest of logit + noise is a draw from the softmax.
            ids = (mixed + self.gumbel(*mixed.shape[1:])).argmax(dim=-1)
        if self.scores:
            self._score = self._score + mixed.log_softmax(dim=-1).gather(-1, ids[..., None])[..., 0]
        return self.spread(ids)
