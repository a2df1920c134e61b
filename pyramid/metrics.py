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
    """Structural similarity of each clip (Wang et al. 2004), the mean over pixels, channels and frames; windows are
    reflected at the borders, as in torchmetrics. (B, 3, T, H, W) in [-1, 1] -> (B,)

    Raises ValueError for frames with a side of fewer than 11 pixels.
    """
    height, width = target.shape[-2:]
    if min(height, width) < WINDOW:
        raise ValueError(f"ssim: expected frames of at least {WINDOW}x{WINDOW} pixels, got {height}x{width}")
    each, _ = _similarity(*_frames(prediction, target))
    return each.reshape(prediction.shape[0], -1).mean(dim=1)


def ms_ssim_scales(height: int, width: int) -> int:
    """Scales, of the 5 that MS-SSIM is defined with, at which frames of this size still hold a whole window; each scale
    halves the frame. 5 need 176 pixels a side, 4 need 88, 3 need 44, 2 need 22."""
    return sum(min(height, width) >> halved >= WINDOW for halved in range(len(MS_SSIM_WEIGHTS)))


def ms_ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Multi-scale structural similarity of each clip (Wang et al. 2003), the mean over its frames; means of contrast
    and structure are over whole windows, negative ones count as 0, as in torchmetrics. (B, 3, T, H, W) in [-1, 1] ->
    (B,)

    On frames that are too small for all 5 scales the first `ms_ssim_scales` count, their weights scaled to sum to 1:
    figures of another number of scales are not comparable. Raises ValueError where fewer than 2 fit.
    """
    height, width = target.shape[-2:]
    scales = ms_ssim_scales(height, width)
    if scales < 2:
        raise ValueError(f"ms_ssim: expected frames of at least {2 * WINDOW} pixels a side, got {height}x{width}")
    weights = MS_SSIM_WEIGHTS[:scales]
    x, y = _frames(prediction, target)
    product = x.new_ones(len(x))
    for scale, weight in enumerate(weights):
        whole, contrast = _similarity(x, y)
        term = whole if scale == scales - 1 else contrast
        product = product * term.relu() ** (weight / sum(weights))
        x, y = (torch.nn.functional.avg_pool2d(image, 2) for image in (x, y))
    return product.reshape(prediction.shape[0], -1).mean(dim=1)


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches of images (N, 3, H, W) in [0, 1] -> SSIM of each (N,), and its term of contrast and structure alone,
    the mean over whole windows, (N,)."""
    c1, c2 = 0.01**2, 0.03**2
    rows, columns = (_window(side, x.device) for side in x.shape[-2:])
    # A window over an axis is one matrix product with it, several times as fast as torchmetrics' 11x11 convolution.
    mean_x, mean_y, square_x, square_y, product = (rows @ image @ columns.T for image in (x, y, x * x, y * y, x * y))
    variances = (square_x - mean_x**2).clamp(min=0) + (square_y - mean_y**2).clamp(min=0)
    contrast = (2 * (product - mean_x * mean_y) + c2) / (variances + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    edge = WINDOW // 2
    inside = contrast[..., edge : contrast.shape[-2] - edge, edge : contrast.shape[-1] - edge]
    return (luminance * contrast).flatten(1).mean(dim=1), inside.flatten(1).mean(dim=1)


def _window(side: int, device: torch.device) -> Tensor:
    """The Gaussian window over one axis as a matrix (side, side), reflected at both ends. side >= 11"""
    offsets = torch.arange(WINDOW) - WINDOW // 2
    taps = torch.exp(-offsets.double().square() / (2 * 1.5**2))
    places = (torch.arange(side)[:, None] + offsets).abs()
    places = (side - 1) - ((side - 1) - places).abs()
    matrix = torch.zeros(side, side, dtype=torch.float64)
    matrix.scatter_add_(1, places, (taps / taps.sum()).expand(side, -1))
    return matrix.float().to(device)


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
