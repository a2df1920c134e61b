"""Vector quantization with a learned codebook (VQ-VAE, 1711.00937), moved by exponential moving averages (its appendix
A.1); codes that nothing has used for a while restart at vectors of the batch (Jukebox, 2005.00341, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyramid import ops
from pyramid.quantize.base import Quantized


class VectorQuantizer(nn.Module):
    """Codebook (K, dim) of unit-scale vectors; `counts` (K,) and `sums` (K, dim) are the moving averages."""

    def __init__(
        self, codebook_size: int, dim: int, *, decay: float = 0.99, commitment: float = 0.25, min_count: float = 0.03
    ) -> None:
        super().__init__()
        if codebook_size < 2 or dim < 1:
            raise ValueError(f"VectorQuantizer: expected codebook_size >= 2 and dim >= 1, got {codebook_size}, {dim}")
        self.codebook_size, self.dim = codebook_size, dim
        self.decay, self.commitment, self.min_count = decay, commitment, min_count
        self.register_buffer("embeddings", torch.randn(codebook_size, dim))
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", self.embeddings.clone())

    def quantize(self, x: Tensor) -> Quantized:
        x = x.float()
        ids = self.codes_to_ids(x)
        codes = self.ids_to_codes(ids)
        loss = self.commitment * (x - codes.detach()).square().mean()
        if self.training and torch.is_grad_enabled():
            self._update(x.detach().reshape(-1, self.dim), ids.reshape(-1))
        return Quantized(x + (codes - x).detach(), ids, loss)

    def _update(self, x: Tensor, ids: Tensor) -> None:
        counts = torch.bincount(ids, minlength=self.codebook_size).to(x)
        sums = torch.zeros_like(self.sums).index_add_(0, ids, x)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        dead = self.counts < self.min_count
        if dead.any() and len(x):
            revived = x[torch.randint(len(x), (int(dead.sum()),), device=x.device)]
            self.sums[dead], self.counts[dead] = revived, 1.0
        self.embeddings.copy_(self.sums / self.counts[:, None])

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        # A copy: the codebook moves in place while autograd may still need these rows.
        return torch.nn.functional.embedding(ids, self.embeddings)

    def codes_to_ids(self, codes: Tensor) -> Tensor:
        return ops.nearest_code(codes.detach().float(), self.embeddings)[0]
