"""Adaptive group norm (AdaGN) from the past only.

MAGVIT-v2 (2310.05737, section 3.2) normalizes the decoder's features by groups of channels before the blocks of every
resolution, and scales and shifts them by what the quantized latents say. Statistics over a clip, as usual for group
norm, would let a frame see those after it. Here they are of one frame: of its features, and of the latent frame that it
is drawn from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUP_CHANNELS = 16


def frame_statistics(latent: Tensor) -> Tensor:
    """Mean and standard deviation of every latent frame: (B, D, T, H, W) -> (B, T, 2 D)"""
    var, mean = torch.var_mean(latent, dim=(3, 4), correction=0)
    return torch.cat([mean, (var + 1e-6).sqrt()], dim=1).movedim(1, -1)


class AdaptiveGroupNorm(nn.Module):
    """Of `dim` channels, in groups of about 16; scaled and shifted by a linear map of the latent's statistics, which
    starts as no change."""

    def __init__(self, dim: int, latent_dim: int) -> None:
        super().__init__()
        self.groups = next(n for n in range(max(1, dim // GROUP_CHANNELS), 0, -1) if dim % n == 0)
        self.modulate = nn.Linear(2 * latent_dim, 2 * dim)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def sums(self, x: Tensor) -> Tensor:
        """Of a part of the frames' places, x (B, T, h, w, C): sums, squared sums and count, (3, B, T, groups) float32.
        Those of all parts add up to those of the frames."""
        groups = x.unflatten(-1, (self.groups, -1)).float()
        total, squares = groups.sum(dim=(2, 3, 5)), groups.square().sum(dim=(2, 3, 5))
        count = torch.full_like(total, x.shape[2] * x.shape[3] * groups.shape[-1])
        return torch.stack([total, squares, count])

    def forward(self, x: Tensor, sums: Tensor, statistics: Tensor) -> Tensor:
        """x (B, T, h, w, C), `sums` of its frames, `statistics` (B, T, 2 D) of their latent frames -> x, normalized and
        modulated."""
        mean = sums[0] / sums[2]
        rstd = (sums[1] / sums[2] - mean.square()).clamp(min=0).add(1e-6).rsqrt()
        per_group = x.shape[-1] // self.groups
        mean, rstd = (value.to(x.dtype).repeat_interleave(per_group, dim=-1) for value in (mean, rstd))
        scale, shift = self.modulate(statistics).chunk(2, dim=-1)
        scale = rstd * (1 + scale)
        return torch.addcmul((shift - mean * scale)[:, :, None, None], x, scale[:, :, None, None])
