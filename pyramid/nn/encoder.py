"""Causal video encoder: frames alone down to the latent's height and width, then groups of frames in time.

Late temporal downsampling (MAGVIT-v2, 2310.05737, section 3.2); the first frame of a clip is a group of its own, made
full by repeating its features, so that one weight set serves images and video.

Beside the network runs a linear path from each block of pixels, in space and time, to its latent: what a transform
codec would send. The network learns what it lacks; DC-AE (2410.10733, section 3.1) puts such paths around every stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from pyramid.nn.blocks import FrameBlock, FrameConv, LatentStack, State, space_to_depth
from pyramid.nn.passes import Passes

if TYPE_CHECKING:
    from pyramid.tokenizer_config import TokenizerConfig


class Encoded(NamedTuple):
    """`latent` (B, D, T, H, W); `features` (B, T, H, W, C), what the latent was made of: meaning is read from them
    (`reader.py`); `state`, for what follows."""

    latent: Tensor
    features: Tensor
    state: State


class Encoder(nn.Module):
    """Of the shape that `config` says; see `TokenizerConfig`."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        c, style = config, config.style
        self.patch, self.time_stride, self.stride, self.rim = c.patch, c.time_stride, c.stride, c.rim
        stages: list[nn.Module] = [FrameConv(3 * c.patch * c.patch, c.channels[0]), nn.GELU()]
        for index, (width, blocks) in enumerate(zip(c.channels, c.depths, strict=True)):
            if index:
                stages.append(FrameConv(c.channels[index - 1], width, stride=2))
            stages += [FrameBlock(width, style) for _ in range(blocks)]
        self.frames = nn.Sequential(*stages)
        self.group = nn.Linear(c.time_stride * c.channels[-1], c.dim)
        self.latents = LatentStack(c.dim, c.depth, style)
        self.head = nn.Sequential(nn.LayerNorm(c.dim), nn.Linear(c.dim, c.latent_dim))
        self.linear = nn.Linear(3 * c.stride**2 * c.time_stride, c.latent_dim) if c.linear_path else None
        # The last norm fixes the latent's scale: what the levels leave over is then a share of one.
        self.norm = nn.LayerNorm(c.latent_dim, elementwise_affine=False)

    def forward(self, video: Tensor, state: State | None = None, *, tile: int | None = None) -> Encoded:
        """Pixel frames (B, 3, T, H, W) -> latent (B, D, T', H', W'), features, new state.

        Without a state the clip starts here: its first frame makes the first latent frame, the others follow in
        groups of `time_stride`, T = 1 + n * time_stride. After a state, T = n * time_stride. `tile`: as `Passes`.
        """
        cells = (video.shape[3] // self.stride, video.shape[4] // self.stride)
        pixels, starts = video.movedim(1, -1), state is None
        x = Passes(cells, self.stride, tile, self.rim)(self._alone, pixels)
        features, state = self.latents(self.group(self._merge(x, starts)), state)
        x = self.head(features)
        if self.linear is not None:
            x = x + self.linear(self._merge(space_to_depth(pixels, self.stride), starts))
        return Encoded(self.norm(x).movedim(-1, 1), features, state)

    def _alone(self, x: Tensor, frames: slice) -> Tensor:
        return self.frames(space_to_depth(x, self.patch))

    def _merge(self, x: Tensor, starts: bool) -> Tensor:
        """Groups of s frames as one: (B, n s, H, W, C) -> (B, n, H, W, s C). Where the clip `starts`, its first
        frame is a group of its own: 1 + (n - 1) s frames come in."""
        if starts:
            x = torch.cat([x[:, :1].expand(-1, self.time_stride - 1, -1, -1, -1), x], dim=1)
        x = x.unflatten(1, (-1, self.time_stride))
        return x.permute(0, 1, 3, 4, 2, 5).flatten(4)
