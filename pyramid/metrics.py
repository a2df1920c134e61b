"""Figures of merit: PSNR and SSIM of a reconstruction, usage and perplexity of a level's codes."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each clip in dB, over all its pixels. (B, 3, T, H, W) in [-1, 1] -> (B,)"""
    error = ((prediction.float() - target.float()) / 2).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=1e-10).log10()


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each clip, the mean over its frames, by torchmetrics (11x11 Gaussian window; frames
    must have at least 11 pixels a side). (B, 3, T, H, W) in [-1, 1] -> (B,)"""
    from torchmetrics.functional.image import structural_similarity_index_measure

    frames = [((v.float() + 1) / 2).movedim(2, 1).flatten(0, 1) for v in (prediction, target)]
    each = structural_similarity_index_measure(*frames, data_range=1.0, reduction="none")
    return each.reshape(prediction.shape[0], -1).mean(dim=1)


class CodeUsage:
    """Counts the ids of one level. `usage`: share of the codebook seen; `perplexity`: exp of the entropy in nats."""

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        self.reset()

    def reset(self) -> None:
        self.counts: dict[int, int] = {}

    def update(self, ids: Tensor) -> None:
        values, counts = ids.detach().flatten().unique(return_counts=True)
        self.merge(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    @property
    def num_tokens(self) -> int:
        return sum(self.counts.values())

    def merge(self, counts: dict[int, int]) -> None:
        """Count the ids of another counter in."""
        for value, count in counts.items():
            self.counts[value] = self.counts.get(value, 0) + count

    def compute(self) -> dict[str, float]:
        if not self.counts:
            return {"usage": 0.0, "perplexity": 0.0}
        share = torch.tensor(list(self.counts.values()), dtype=torch.float64)
        share = share / share.sum()
        perplexity = (-(share * share.log()).sum()).exp().item()
        return {"usage": len(self.counts) / self.codebook_size, "perplexity": perplexity}
