"""Figures of merit: PSNR, SSIM and MS-SSIM of a reconstruction, raw bits of its tokens, usage and perplexity of a
level's codes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyramid.levels import Pyramid, check_detail

PSNR_CAP = 100.0  # dB, what equal clips get
WINDOW = 11  # pixels a side of SSIM's Gaussian window, standard deviation 1.5 (Wang et al. 2004)
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, the full one first (Wang et al. 2003)


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each clip in dB, over all its pixels, at most `PSNR_CAP`. (B, 3, T, H, W) in
    [-1, 1] -> (B,)"""
    error = ((prediction.float() - target.float()) / 2).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=10 ** (-PSNR_CAP / 10)).log10()


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each clip, the mean over its frames and channels, by torchmetrics (11x11 Gaussian
    window, reflected at the borders). (B, 3, T, H, W) in [-1, 1] -> (B,)

    Raises ValueError for frames with a side of fewer than 11 pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(target.shape[-2:]) < WINDOW:
        found = "x".join(map(str, target.shape[-2:]))
        raise ValueError(f"ssim: expected frames of at least {WINDOW}x{WINDOW} pixels, got {found}")
    each = structural_similarity_index_measure(*_frames(prediction, target), data_range=1.0, reduction="none")
    return each.reshape(prediction.shape[0], -1).mean(dim=1)


def ms_ssim_scales(height: int, width: int) -> int:
    """Scales, of the 5 that MS-SSIM is defined with, at which frames of this size still hold a whole window; each scale
    halves the frame. 5 need 176 pixels a side, 4 need 99, 3 need 44, 2 need 22."""
    side = min(height, width)
    # The second division is torchmetrics' own demand; it is the stricter one for 4 scales alone, 99 pixels for 88.
    fits = [min(side >> halved, side // max(1, halved) ** 2) >= WINDOW for halved in range(len(MS_SSIM_WEIGHTS))]
    return sum(fits)


def ms_ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Multi-scale structural similarity of each clip, the mean over its frames, by torchmetrics, negative terms taken
    as 0. (B, 3, T, H, W) in [-1, 1] -> (B,)

    On frames that are too small for all 5 scales the first `ms_ssim_scales` count, their weights scaled to sum to 1:
    figures of another number of scales are not comparable. Raises ValueError where fewer than 2 fit.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    height, width = target.shape[-2:]
    scales = ms_ssim_scales(height, width)
    if scales < 2:
        raise ValueError(f"ms_ssim: expected frames of at least {2 * WINDOW} pixels a side, got {height}x{width}")
    weights = MS_SSIM_WEIGHTS[:scales]
    betas = tuple(weight / sum(weights) for weight in weights)
    each = multiscale_structural_similarity_index_measure(
        *_frames(prediction, target), data_range=1.0, betas=betas, normalize="relu", reduction="none"
    )
    return each.reshape(prediction.shape[0], -1).mean(dim=1)


def _frames(*videos: Tensor) -> list[Tensor]:
    """(B, 3, T, H, W) in [-1, 1] -> (B * T, 3, H, W) in [0, 1], float32"""
    return [((video.float() + 1) / 2).movedim(2, 1).flatten(0, 1) for video in videos]


def raw_bits(pyramids: Sequence[Pyramid], codebook_sizes: Sequence[int], detail: int | None = None) -> float:
    """Bits of the tokens of a clip at a detail (all levels by default) without entropy coding: log2 of the level's
    codebook size a token. `pyramids`: of its chunks; `codebook_sizes`: of the levels.

    Raises ValueError for a detail that the pyramids do not have.
    """
    detail = check_detail(detail, len(codebook_sizes), "raw_bits")
    return sum(
        count * math.log2(size)
        for pyramid in pyramids
        for count, size in zip(pyramid.prefix(detail).counts, codebook_sizes, strict=False)
    )


class CodeUsage:
    """Counts the ids of one level. `usage`: share of the codebook seen; `perplexity`: exp of the entropy in nats."""

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        self.reset()

    def reset(self) -> None:
        self.counts: dict[int, int] = {}

    def update(self, ids: Tensor) -> None:
        values, counts = ids.detach().flatten().unique(return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.counts[value] = self.counts.get(value, 0) + count

    def compute(self) -> dict[str, float]:
        if not self.counts:
            return {"usage": 0.0, "perplexity": 0.0}
        share = torch.tensor(list(self.counts.values()), dtype=torch.float64)
        share = share / share.sum()
        perplexity = (-(share * share.log()).sum()).exp().item()
        return {"usage": len(self.counts) / self.codebook_size, "perplexity": perplexity}
