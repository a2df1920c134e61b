"""Finite scalar quantization (FSQ, 2309.15505): each number is bounded and rounded to one of L_i values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyramid import ops
from pyramid.quantize.base import Quantized


class FSQQuantizer(nn.Module):
    """`levels` L_i, each at least 3 (for signs use bits); ids are mixed-radix, the first number fastest. Codes lie
    in [-1, 1]: multiples of 1 / (L_i // 2), from -1 for even L_i (the half-offset of the paper's appendix A). The id
    of any numbers is that of the nearest code; NaN counts as 0."""

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 3:
            raise ValueError(f"FSQQuantizer: every number must have at least 3 levels, got {tuple(levels)}")
        self.levels = tuple(levels)
        self.dim, self.codebook_size = len(levels), math.prod(levels)
        sizes = torch.tensor(self.levels)
        self.register_buffer("sizes", sizes, persistent=False)
        radix = torch.cumprod(torch.tensor([1, *self.levels[:-1]]), dim=0)
        self.register_buffer("radix", radix, persistent=False)

    def quantize(self, x: Tensor) -> Quantized:
        half = (self.sizes - 1).float() * (1 - 1e-3) / 2
        offset = torch.where(self.sizes % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / half)
        bounded = (torch.tanh(x.float() + shift) * half - offset) / (self.sizes // 2)
        ids = self.codes_to_ids(bounded.detach())
        return Quantized(ops.straight_through(bounded, self.ids_to_codes(ids)), ids, bounded.new_zeros(()))

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        digits = (ids[..., None] // self.radix) % self.sizes
        return (digits - self.sizes // 2).float() / (self.sizes // 2)

    def codes_to_ids(self, codes: Tensor) -> Tensor:
        digits = (codes.float().nan_to_num() * (self.sizes // 2)).round() + self.sizes // 2
        return (digits.clamp(min=0).minimum(self.sizes - 1).long() * self.radix).sum(dim=-1)
