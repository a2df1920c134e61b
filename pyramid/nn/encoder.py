"""Causal video encoder: frames alone down to the latent's height and width, then groups of frames in time.

Late temporal downsampling (MAGVIT-v2, 2310.05737, section 3.2); the first frame of a clip is a group of its own, made
full by repeating its features, so that one weight set serves images and video.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyramid.nn.blocks import FrameBlock, FrameConv, LatentStack, State, space_to_depth


class Encoder(nn.Module):
    """`patch`: pixels a side that the first convolution takes as one cell, with their neighbours; `channels`: widths
    there and after each further halving; `depths`: blocks at each width."""

    def __init__(
        self,
        patch: int,
        channels: Sequence[int],
        depths: Sequence[int],
        time_stride: int,
        dim: int,
        depth: int,
        latent_dim: int,
    ) -> None:
        super().__init__()
        self.patch, self.time_stride = patch, time_stride
        stages: list[nn.Module] = [FrameConv(3 * patch * patch, channels[0]), nn.GELU()]
        for index, (width, blocks) in enumerate(zip(channels, depths, strict=True)):
            if index:
                stages.append(FrameConv(channels[index - 1], width, stride=2))
            stages += [FrameBlock(width) for _ in range(blocks)]
        self.frames = nn.Sequential(*stages)
        self.group = nn.Linear(time_stride * channels[-1], dim)
        self.latents = LatentStack(dim, depth)
        # The last norm fixes the latent's scale: what the levels leave over is then a share of one.
        self.head = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, latent_dim), nn.LayerNorm(latent_dim, elementwise_affine=False)
        )

    def forward(self, video: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Pixel frames (B, 3, T, H, W) -> latent (B, D, T', H', W'), new state.

        Without a state the clip starts here: its first frame makes the first latent frame, the others follow in
        groups of `time_stride`, T = 1 + n * time_stride. After a state, T = n * time_stride.
        """
        x = self.frames(space_to_depth(video.movedim(1, -1), self.patch))
        if state is None:
            first = x[:, :1].expand(-1, self.time_stride, -1, -1, -1)
            groups = [first, x[:, 1:]] if x.shape[1] > 1 else [first]
        else:
            groups = [x]
        x = torch.cat([self._merge(group) for group in groups], dim=1)
        x, state = self.latents(self.group(x), state)
        return self.head(x).movedim(-1, 1), state

    def _merge(self, x: Tensor) -> Tensor:
        """(B, n s, H, W, C) -> (B, n, H, W, s C)"""
        x = x.unflatten(1, (-1, self.time_stride))
        return x.permute(0, 1, 3, 4, 2, 5).flatten(4)
