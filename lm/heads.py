"""Code embeddings and heads: how ids of a level become vectors of the model and how the model predicts them.

Never one big softmax over 2^d bit codes: a bit code is predicted in groups of at most 8 bits, each group given the ones
before it (the sub-token prediction of Open-MAGVIT2, 2409.04410). Words are predicted against the frozen word table.

A head may be *pointed* at codes, those that would copy (context.py): it learns how much each counts for where, and adds
that to the code's logit, so that copying a code takes no knowing of it (pointer networks, 1506.03134; 1704.04368).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyramid.quantize.base import Quantizer
from pyramid.quantize.fsq import FSQQuantizer
from pyramid.quantize.vq import VectorQuantizer
from pyramid.quantize.words import WordQuantizer

# Draws ids (...) from logits (..., K): how is the caller's business (temperature, top-p, guidance, seeds).
Draw = Callable[[Tensor], Tensor]

GROUP_BITS = 8
UNIT = 8.0  # a copy that is sure has about so many nats: learned in as many steps as other weights


@dataclass(frozen=True, eq=False)
class Point:
    """At one code a token: `codes` (...) int64, `trust` (...) from 0 to 1. `strength`: hidden (..., dim) -> (..., G),
    what is added to the logits of each of G groups of digits, in units of `UNIT` nats."""

    codes: Tensor
    trust: Tensor
    strength: nn.Module

    def add(self, logits: Tensor, hidden: Tensor, group: int, digit: Tensor) -> Tensor:
        """logits (..., K) of a group of digits, with the strength added at `digit` (...)."""
        strength = UNIT * self.strength(hidden)[..., group] * self.trust.to(hidden)
        return logits.scatter_add(-1, digit[..., None], strength[..., None].to(logits))

    def after(self, pointed: Tensor, digit: Tensor) -> Point:
        """The same behind a group whose digit was another one than that pointed at: no longer."""
        return Point(self.codes, self.trust * (pointed == digit), self.strength)


class CodeEmbedding(nn.Module):
    """Linear map of a level's codes: (...) int64 -> (..., dim)."""

    def __init__(self, quantizer: Quantizer, dim: int) -> None:
        super().__init__()
        self.ids_to_codes = quantizer.ids_to_codes
        self.linear = nn.Linear(quantizer.dim, dim)

    def forward(self, codes: Tensor) -> Tensor:
        return self.linear(self.ids_to_codes(codes).to(self.linear.weight.dtype))


class WordHead(nn.Module):
    """Logits over a frozen table (K, E): inner products in the table's space."""

    num_groups = 1

    def __init__(self, embeddings: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings.clone(), persistent=False)
        self.linear = nn.Linear(dim, embeddings.shape[1])
        self.bias = nn.Parameter(torch.zeros(len(embeddings)))
        self.scale = nn.Parameter(torch.tensor(4.0))

    def logits(self, hidden: Tensor, points: Sequence[Point] = ()) -> Tensor:
        logits = self.scale * self.linear(hidden) @ self.embeddings.T + self.bias
        for point in points:
            logits = point.add(logits, hidden, 0, point.codes)
        return logits

    def nll(self, hidden: Tensor, codes: Tensor, points: Sequence[Point] = ()) -> Tensor:
        """(..., dim), ids (...) -> negative log-likelihood in nats (...)."""
        return _cross_entropy(self.logits(hidden, points), codes)

    def sample(self, hidden: Tensor, draw: Draw, points: Sequence[Point] = ()) -> Tensor:
        return draw(self.logits(hidden, points))


class GroupHead(nn.Module):
    """Ids of a codebook of `codebook_size` codes, as little-endian groups of digits with at most 2^GROUP_BITS values,
    the first group the lowest digits. A codebook whose size is no power of two is one group of up to 4096 values, or
    groups of `digits`: the bases of its mixed-radix ids (FSQ), lowest first. `whole`: one group of up to 4096 values
    whatever the size, for codes whose digits mean nothing (VQ). Raises ValueError for other sizes."""

    def __init__(self, codebook_size: int, dim: int, digits: Sequence[int] = (), *, whole: bool = False) -> None:
        super().__init__()
        bits = codebook_size.bit_length() - 1
        if codebook_size == 1 << bits and not (whole and codebook_size <= 4096):
            count = -(-bits // GROUP_BITS)
            widths = [bits // count + (index < bits % count) for index in range(count)]
            self.sizes = [1 << width for width in widths]
        elif codebook_size <= 4096:
            self.sizes = [codebook_size]
        elif codebook_size == math.prod(digits):
            self.sizes = [digits[0]]
            for base in digits[1:]:
                if self.sizes[-1] * base <= 1 << GROUP_BITS:
                    self.sizes[-1] *= base
                else:
                    self.sizes.append(base)
        else:
            raise ValueError(
                "GroupHead: a codebook of more than 4096 codes must have a power of two of them, or digits, got "
                f"{codebook_size} codes and the digits {tuple(digits)}"
            )
        self.linears = nn.ModuleList(nn.Linear(dim, size) for size in self.sizes)
        self.embeddings = nn.ModuleList(nn.Embedding(size, dim) for size in self.sizes[:-1])
        self.mixes = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
            for _ in self.sizes[:-1]
        )

    @property
    def num_groups(self) -> int:
        return len(self.sizes)

    def nll(self, hidden: Tensor, codes: Tensor, points: Sequence[Point] = ()) -> Tensor:
        """(..., dim), ids (...) -> negative log-likelihood in nats (...)."""
        parts: list[Tensor] = []

        def told(logits: Tensor, place: int, size: int) -> Tensor:
            digit = codes // place % size
            parts.append(_cross_entropy(logits, digit))
            return digit

        self._walk(hidden, points, told)
        return torch.stack(parts).sum(dim=0)

    def sample(self, hidden: Tensor, draw: Draw, points: Sequence[Point] = ()) -> Tensor:
        """`draw` is called once a group. (..., dim) -> ids (...)."""
        return self._walk(hidden, points, lambda logits, place, size: draw(logits))

    def _walk(self, hidden: Tensor, points: Sequence[Point], answer: Callable[[Tensor, int, int], Tensor]) -> Tensor:
        """The ids whose digits `answer` gives, group by group, from logits, the place value and the size."""
        codes, place = torch.zeros(hidden.shape[:-1], dtype=torch.int64, device=hidden.device), 1
        for index, size in enumerate(self.sizes):
            logits = self.linears[index](hidden)
            pointed = [point.codes // place % size for point in points]
            for point, at in zip(points, pointed, strict=True):
                logits = point.add(logits, hidden, index, at)
            digit = answer(logits, place, size)
            codes = codes + place * digit
            place *= size
            if index < len(self.embeddings):
                points = [point.after(at, digit) for point, at in zip(points, pointed, strict=True)]
                hidden = self._advance(index, hidden, digit)
        return codes

    def _advance(self, index: int, hidden: Tensor, digit: Tensor) -> Tensor:
        hidden = hidden + self.embeddings[index](digit)
        return hidden + self.mixes[index](hidden)


def make_head(quantizer: Quantizer, dim: int) -> WordHead | GroupHead:
    """The head that predicts the ids of a level's quantizer."""
    if isinstance(quantizer, WordQuantizer):
        return WordHead(quantizer.embeddings, dim)
    digits = quantizer.levels if isinstance(quantizer, FSQQuantizer) else ()
    return GroupHead(quantizer.codebook_size, dim, digits, whole=isinstance(quantizer, VectorQuantizer))


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float().movedim(-1, 1), target, reduction="none")
