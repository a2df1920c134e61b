"""Vector quantization with a learned codebook (VQ-VAE, 1711.00937), moved by exponential moving averages (its appendix
A.1); codes that nothing has used for a while restart at vectors of the batch (Jukebox, 2005.00341, section 3.1). It
starts among the vectors of the first batch, by k-means, and its gradient is that of the rotation trick (`rotate`).

`quantize` changes nothing. The codebook moves by `update`, which training calls once a step with the vectors of the
joint batch of all ranks: then every rank has the codebook that one process would have.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyramid import ops
from pyramid.quantize.base import Quantized

KMEANS_ROUNDS = 10  # on the first vectors


def rotate(x: Tensor, codes: Tensor) -> Tensor:
    """The codes, whose gradient reaches x (..., dim) as if they were x turned and scaled onto them by a matrix that is
    held fixed: the rotation trick (2410.06424, section 4). A straight-through gradient would be the same wherever in
    its code's cell x lies."""
    if not x.requires_grad:
        return codes
    norm = x.detach().norm(dim=-1, keepdim=True).clamp_min(1e-6)
    length = codes.norm(dim=-1, keepdim=True)
    e, q = x.detach() / norm, codes / length.clamp_min(1e-6)
    r = torch.nn.functional.normalize(e + q, dim=-1)
    turned = x - 2 * (x * r).sum(-1, keepdim=True) * r + 2 * (x * e).sum(-1, keepdim=True) * q
    moved = turned * (length / norm)
    return codes + (moved - moved.detach())


class VectorQuantizer(nn.Module):
    """Codebook (K, dim) of unit-scale vectors; `counts` (K,) and `sums` (K, dim) are the moving averages.

    `idle` (K,): how often each code would have been used since its last use if all were used alike, at most once an
    update. Above `patience` of these a code is dead: at uniform use that happens by chance once in exp(patience) times,
    whatever the number of codes and of vectors an update.
    """

    def __init__(
        self, codebook_size: int, dim: int, *, decay: float = 0.8, commitment: float = 0.25, patience: float = 20.0
    ) -> None:
        super().__init__()
        if codebook_size < 2 or dim < 1:
            raise ValueError(f"VectorQuantizer: expected codebook_size >= 2 and dim >= 1, got {codebook_size}, {dim}")
        self.codebook_size, self.dim = codebook_size, dim
        self.decay, self.commitment, self.patience = decay, commitment, patience
        self.register_buffer("embeddings", torch.randn(codebook_size, dim))
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", self.embeddings.clone())
        self.register_buffer("idle", torch.zeros(codebook_size))
        self.register_buffer("started", torch.tensor(False))

    def quantize(self, x: Tensor) -> Quantized:
        x = x.float()
        ids = self.codes_to_ids(x)
        codes = self.ids_to_codes(ids)
        loss = self.commitment * (x - codes.detach()).square().mean()
        return Quantized(rotate(x, codes), ids, loss)

    def update(self, x: Tensor, ids: Tensor, generator: torch.Generator | None = None) -> int:
        """Move the codebook to the vectors x (..., dim), whose codes are ids (...) int64; `generator` (CPU) draws where
        dead codes restart. Returns how many did."""
        x, ids = x.detach().float().reshape(-1, self.dim), ids.reshape(-1)
        if not self.started:
            self._start(x, generator)
            return 0
        counts = torch.bincount(ids, minlength=self.codebook_size).to(x)
        sums = torch.zeros_like(self.sums).index_add_(0, ids, x)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        used = counts > 0  # the quotient of the others stays as it is
        self.embeddings[used] = self.sums[used] / self.counts[used, None]
        expected = min(len(x) / self.codebook_size, 1.0)
        self.idle.add_(expected).masked_fill_(used, 0)
        # Each vector revives one code at most; where there are more dead codes, the next updates go on.
        dead = (self.idle > self.patience).nonzero()[: len(x), 0]
        revived = x[torch.randperm(len(x), generator=generator)[: len(dead)].to(x.device)]
        self.embeddings[dead], self.sums[dead] = revived, expected * revived
        self.counts[dead], self.idle[dead] = expected, 0.0
        return len(dead)

    def _start(self, x: Tensor, generator: torch.Generator | None) -> None:
        """Put the codes among the first vectors, by k-means."""
        order = torch.randperm(len(x), generator=generator).to(x.device)
        self.embeddings.copy_(x[order[torch.arange(self.codebook_size, device=x.device) % len(x)]])
        for _ in range(KMEANS_ROUNDS):
            ids = self.codes_to_ids(x)
            counts = torch.bincount(ids, minlength=self.codebook_size).to(x)
            sums = torch.zeros_like(self.sums).index_add_(0, ids, x)
            used = counts > 0
            self.embeddings[used] = sums[used] / counts[used, None]
        self.counts.copy_(counts.clamp_min(1))
        self.sums.copy_(self.embeddings * self.counts[:, None])
        self.started.fill_(True)

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        # A copy: the codebook moves in place while autograd may still need these rows.
        return torch.nn.functional.embedding(ids, self.embeddings).float()

    def codes_to_ids(self, codes: Tensor) -> Tensor:
        return ops.nearest_code(codes.detach().float(), self.embeddings.float())[0]
