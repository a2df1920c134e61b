"""Causal video decoder, the encoder's mirror: latent frames to groups of frames, then frames alone up to pixels.

Upsampling is depth-to-space (MAGVIT-v2, 2310.05737, section 3.2). The decoder is told the detail of what it is given,
so that a blurred prefix can be drawn as well as its information allows. Beside the network runs the encoder's linear
path, the other way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from pyramid.nn.adaptive_norm import AdaptiveGroupNorm, frame_statistics
from pyramid.nn.blocks import FrameBlock, FrameConv, LatentStack, State, depth_to_space
from pyramid.nn.passes import Passes

if TYPE_CHECKING:
    from pyramid.tokenizer_config import TokenizerConfig

Modulation = tuple[Tensor | None, Tensor]


class Decoder(nn.Module):
    """Of the shape that `config` says; it can be told as many details as there are levels, and one more."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        c, style = config, config.style
        self.patch, self.time_stride, self.stride, self.rim = c.patch, c.time_stride, c.stride, c.rim
        self.stem = nn.Linear(c.latent_dim, c.dim)
        self.detail = nn.Embedding(c.num_levels + 1, c.dim)  # the last: an unquantized latent
        self.latents = LatentStack(c.dim, c.depth, style)
        self.group = nn.Sequential(nn.LayerNorm(c.dim), nn.Linear(c.dim, c.time_stride * c.channels[-1]))
        self.stages, self.norms = nn.ModuleList(), nn.ModuleList()
        for index in reversed(range(len(c.channels))):
            width = c.channels[index]
            blocks = [FrameBlock(width, style) for _ in range(c.depths[index])]
            up = nn.Linear(width, 4 * c.channels[index - 1]) if index else FrameConv(width, 3 * c.patch * c.patch)
            self.stages.append(nn.Sequential(*blocks, up))
            if c.adaptive_norm:
                self.norms.append(AdaptiveGroupNorm(width, c.latent_dim))
        self.linear = nn.Linear(c.latent_dim, 3 * c.stride**2 * c.time_stride) if c.linear_path else None

    def forward(
        self, latent: Tensor, detail: Tensor, state: State | None = None, *, tile: int | None = None
    ) -> tuple[Tensor, State]:
        """Latent (B, D, T', H', W') and details (B,) int64 from 1 -> pixel frames (B, 3, T, H, W), new state.

        Without a state the first latent frame gives one frame, every other one `time_stride` frames. `tile`: as
        for `Passes`.
        """
        x = self.stem(latent.movedim(1, -1)) + self.detail(detail - 1)[:, None, None, None]
        starts = state is None
        x, state = self.latents(x, state)
        x = self._split(self.group(x), starts)
        passes = Passes((x.shape[2], x.shape[3]), self.stride, tile, self.rim)
        modulations = self._modulations(x, latent, passes)
        x = passes(lambda part, frames: self._alone(part, frames, modulations), x)
        if self.linear is not None:
            y = self._split(self.linear(latent.movedim(1, -1)), starts)
            x = x + depth_to_space(y, self.stride)
        return x.movedim(-1, 1), state

    def _split(self, x: Tensor, starts: bool) -> Tensor:
        """Latent frames to their groups of frames: (B, n, H, W, s C) -> (B, n s, H, W, C); where the clip `starts`, the
        first gives one."""
        x = x.unflatten(-1, (self.time_stride, -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
        return x[:, self.time_stride - 1 :] if starts else x

    def _alone(self, x: Tensor, frames: slice, modulations: list[Modulation], num_stages: int | None = None) -> Tensor:
        """The first stages (all by default) of frames alone, `frames` of those that the modulations are of."""
        for index, stage in enumerate(list(self.stages)[:num_stages]):
            if self.norms:
                sums, statistics = modulations[index]
                sums = self.norms[index].sums(x) if sums is None else sums[:, :, frames]
                x = self.norms[index](x, sums, statistics[:, frames])
            x = depth_to_space(stage(x), 2 if index < len(self.stages) - 1 else self.patch)
        return x

    def _modulations(self, x: Tensor, latent: Tensor, passes: Passes) -> list[Modulation]:
        """What the norm of each stage goes by: the sums of the features it is given, None where a pass sees whole
        frames and can take them itself, and the latent's statistics. In tiles, the sums of a stage need the stages
        before it: a round over the tiles for each."""
        if not self.norms:
            return []
        statistics = frame_statistics(latent).repeat_interleave(self.time_stride, dim=1)[:, -x.shape[1] :]
        if passes.whole:
            return [(None, statistics)] * len(self.norms)
        done: list[Modulation] = []
        for index, norm in enumerate(self.norms):
            groups = cast(AdaptiveGroupNorm, norm).groups
            sums = x.new_zeros((3, *x.shape[:2], groups), dtype=torch.float32)
            for _, _, frames, y in passes.parts(lambda part, at, k=index: self._alone(part, at, done, k), x):
                sums[:, :, frames] += norm.sums(y)
            done.append((sums, statistics))
        return done
