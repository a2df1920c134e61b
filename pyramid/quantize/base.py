"""The one interface of all quantizers: vectors in code space <-> codes <-> integer ids.

A quantizer works in its own *code space* of `dim` numbers a token; the projections between the latent and that space
belong to the level (`residual.py`). `quantize` is for training (gradients, losses); `codes_to_ids` and `ids_to_codes`
are exact inverses in fp32, bf16 and fp16. There is no distributed call, autocast or no_grad in a quantizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Quantized:
    """`codes` (..., dim) float32: forward exactly `ids_to_codes(ids)`, straight-through gradient backward. `ids` (...)
    int64, in range whatever x was (NaN too). `loss`: scalar, the quantizer's own objective with its weights applied."""

    codes: Tensor
    ids: Tensor
    loss: Tensor


class Quantizer(Protocol):
    """`dim`: numbers a code has; `codebook_size`: ids run from 0 to codebook_size - 1."""

    dim: int
    codebook_size: int

    def quantize(self, x: Tensor) -> Quantized:
        """x (..., dim), any float dtype, computed in float32."""
        ...

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        """ids (...) int64 -> codes (..., dim) float32."""
        ...

    def codes_to_ids(self, codes: Tensor) -> Tensor:
        """codes (..., dim) -> ids (...) int64."""
        ...
