"""Words as codes: nearest row of a frozen word table (SPAE, 2306.17842, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyramid import ops
from pyramid.quantize.base import Quantized
from pyramid.words import WordTable


class WordQuantizer(nn.Module):
    """Codes are rows of `table.embeddings` (K, E), a buffer that no optimizer sees; ties go to the lowest id."""

    def __init__(self, table: WordTable, *, commitment: float = 0.25) -> None:
        super().__init__()
        self.table, self.commitment = table, commitment
        self.codebook_size, self.dim = table.embeddings.shape
        self.register_buffer("embeddings", table.embeddings.clone(), persistent=False)

    def quantize(self, x: Tensor) -> Quantized:
        x = x.float()
        ids = self.codes_to_ids(x)
        codes = self.ids_to_codes(ids)
        loss = self.commitment * (x - codes).square().sum(dim=-1).mean()
        return Quantized(ops.straight_through(x, codes), ids, loss)

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        return torch.nn.functional.embedding(ids, self.embeddings).float()

    def codes_to_ids(self, codes: Tensor) -> Tensor:
        return ops.nearest_code(codes.detach().float(), self.embeddings.float())[0]
