"""Drawing ids from logits: guidance, temperature, nucleus, and seeds that give a row the same draw in any batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingConfig:
    """`temperature` 0 takes the most likely id; `top_p`: the smallest set of ids with this share of the probability;
    `guidance` g: logits l = u + g (c - u) from the conditional c and the unconditional u, 1 for none. Raises ValueError
    for a number that is out of range or not finite."""

    temperature: float = 1.0
    top_p: float = 0.95
    guidance: float = 1.5

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be finite and 0 or more, got {self.guidance}")


def keep_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits (..., K) with those outside the nucleus at -inf (2020, 1904.09751); the most likely id always stays."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probability = ordered.softmax(dim=-1)
    outside = probability.cumsum(dim=-1) - probability >= top_p
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))


class Sampler:
    """Draws for B rows, each with a generator of its own: row i depends on `seeds[i]` alone, not on its neighbours.

    With guidance the logits come for 2 B rows, conditional ones first; both halves of the answer are the same.
    """

    def __init__(self, config: SamplingConfig, seeds: list[int], device: torch.device) -> None:
        self.config, self.device = config, device
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    @property
    def guided(self) -> bool:
        return self.config.guidance != 1

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) numbers in [0, 1)."""
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators]).to(self.device)

    def __call__(self, logits: Tensor) -> Tensor:
        """(B or 2 B, n, K) -> ids (B or 2 B, n)."""
        logits = logits.float()
        if self.guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + self.config.guidance * (conditional - unconditional)
        if self.config.temperature == 0:
            ids = logits.argmax(dim=-1)
        else:
            logits = keep_nucleus(logits / self.config.temperature, self.config.top_p)
            # The Gumbel trick: the largest of logit + noise is a draw from the softmax.
            noise = self.uniform(*logits.shape[1:]).clamp_(min=1e-20).log_().neg_().clamp_(min=1e-20).log_().neg_()
            ids = (logits + noise).argmax(dim=-1)
        return ids.repeat(2, 1) if self.guided else ids
