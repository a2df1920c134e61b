"""A video critic: residual 3-D convolutions with blur-pool downsampling (MAGVIT, 2212.05199, appendix; StyleGAN,
1812.04948; anti-aliasing, 1904.11486).

Not causal: it judges whole clips, in training alone. No norm and no statistic over the batch, so that a clip's score
does not depend on its neighbours or on how many ranks share them; the mean at the end makes it take any length and
size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Shapes: B batch, C channels, T H W frames, height, width.


class BlurPool(nn.Module):
    """Binomial blur 1-3-3-1 along `axes` of (T, H, W), then every second place there: (B, C, T, H, W) -> halves,
    rounded up. The clip's ends are repeated, so that still parts keep their value."""

    def __init__(self, channels: int, axes: Sequence[bool]) -> None:
        super().__init__()
        taps = torch.ones(1, 1, 1)
        self.stride: list[int] = []
        self.pad: list[int] = []
        binomial = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        for axis, used in enumerate(axes):
            shape = [1, 1, 1]
            shape[axis] = 4 if used else 1
            taps = taps * (binomial if used else torch.ones(1)).reshape(shape)
            self.stride.append(2 if used else 1)
            self.pad = [*((1, 2) if used else (0, 0)), *self.pad]  # F.pad goes from the last axis to the first
        self.register_buffer("taps", taps.expand(channels, 1, -1, -1, -1).contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, self.pad, mode="replicate")
        return nn.functional.conv3d(x, self.taps, stride=self.stride, groups=x.shape[1])


class ResidualDown(nn.Module):
    """Two convolutions and a skip, each ending in a blur-pool: (B, C, T, H, W) -> (B, C', T', H / 2, W / 2); time is
    halved too where `time` says."""

    def __init__(self, dim_in: int, dim_out: int, time: bool) -> None:
        super().__init__()
        axes = (time, True, True)
        self.first = nn.Conv3d(dim_in, dim_in, 3, padding=1)
        self.pool, self.skip_pool = BlurPool(dim_in, axes), BlurPool(dim_in, axes)
        self.second = nn.Conv3d(dim_in, dim_out, 3, padding=1)
        self.skip = nn.Conv3d(dim_in, dim_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.leaky_relu(self.first(x), 0.2)
        y = nn.functional.leaky_relu(self.second(self.pool(y)), 0.2)
        return (y + self.skip(self.skip_pool(x))) * 0.5**0.5


class Discriminator(nn.Module):
    """Video (B, 3, T, H, W) -> logits (B,), high for real. `channels`: width at full resolution and after each halving
    of height and width; time is halved in the last two of the halvings."""

    def __init__(self, channels: Sequence[int] = (32, 64, 128, 128)) -> None:
        super().__init__()
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(f"Discriminator: channels: expected two widths or more, each at least 1, got {channels}")
        self.stem = nn.Conv3d(3, channels[0], 3, padding=1)
        halvings = len(channels) - 1
        self.blocks = nn.Sequential(
            *(
                ResidualDown(channels[index], channels[index + 1], time=index >= halvings - 2)
                for index in range(halvings)
            )
        )
        width = channels[-1]
        self.last = nn.Conv3d(width, width, 3, padding=1)
        self.head = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))

    def forward(self, video: Tensor) -> Tensor:
        x = self.blocks(nn.functional.leaky_relu(self.stem(video), 0.2))
        x = nn.functional.leaky_relu(self.last(x), 0.2)
        return self.head(x.mean(dim=(2, 3, 4)))[:, 0]
