"""Causal video decoder, the encoder's mirror: latent frames to groups of frames, then frames alone up to pixels.

Upsampling is depth-to-space (MAGVIT-v2, 2310.05737, section 3.2). The decoder is told the detail of what it is given,
so that a blurred prefix can be drawn as well as its information allows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from pyramid.nn.blocks import FrameBlock, FrameConv, LatentStack, State, depth_to_space
from pyramid.nn.passes import in_passes

if TYPE_CHECKING:
    from pyramid.tokenizer import TokenizerConfig


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
        self.stages = nn.ModuleList()
        for index in reversed(range(len(c.channels))):
            width = c.channels[index]
            blocks = [FrameBlock(width, style) for _ in range(c.depths[index])]
            up = nn.Linear(width, 4 * c.channels[index - 1]) if index else FrameConv(width, 3 * c.patch * c.patch)
            self.stages.append(nn.Sequential(*blocks, up))

    def forward(
        self, latent: Tensor, detail: Tensor, state: State | None = None, *, tile: int | None = None
    ) -> tuple[Tensor, State]:
        """Latent (B, D, T', H', W') and details (B,) int64 from 1 -> pixel frames (B, 3, T, H, W), new state.

        Without a state the first latent frame gives one frame, every other one `time_stride` frames. `tile`: as
        `in_passes`.
        """
        x = self.stem(latent.movedim(1, -1)) + self.detail(detail - 1)[:, None, None, None]
        starts = state is None
        x, state = self.latents(x, state)
        x = self.group(x)
        x = x.unflatten(-1, (self.time_stride, -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
        if starts:
            x = x[:, self.time_stride - 1 :]
        cells = (x.shape[2], x.shape[3])
        x = in_passes(self._alone, x, cells=cells, stride=self.stride, tile=tile, rim=self.rim)
        return x.movedim(-1, 1), state

    def _alone(self, frames: Tensor) -> Tensor:
        for index, stage in enumerate(self.stages, start=1):
            frames = depth_to_space(stage(frames), 2 if index < len(self.stages) else self.patch)
        return frames
