"""Causal video decoder, the encoder's mirror: latent frames to groups of frames, then frames alone up to pixels.

Upsampling is depth-to-space (MAGVIT-v2, 2310.05737, section 3.2). The decoder is told the detail of what it is given,
so that a blurred prefix can be drawn as well as its information allows.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pyramid.nn.blocks import FrameBlock, FrameConv, LatentStack, State, depth_to_space


class Decoder(nn.Module):
    """Arguments as `Encoder`; `num_levels`: details it can be told."""

    def __init__(
        self,
        patch: int,
        channels: Sequence[int],
        depths: Sequence[int],
        time_stride: int,
        dim: int,
        depth: int,
        latent_dim: int,
        num_levels: int,
    ) -> None:
        super().__init__()
        self.patch, self.time_stride = patch, time_stride
        self.stem = nn.Linear(latent_dim, dim)
        self.detail = nn.Embedding(num_levels + 1, dim)  # the last: an unquantized latent
        self.latents = LatentStack(dim, depth)
        self.group = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, time_stride * channels[-1]))
        self.stages = nn.ModuleList()
        for index in reversed(range(len(channels))):
            width = channels[index]
            blocks = [FrameBlock(width) for _ in range(depths[index])]
            up = nn.Linear(width, 4 * channels[index - 1]) if index else FrameConv(width, 3 * patch * patch)
            self.stages.append(nn.Sequential(*blocks, up))

    def forward(self, latent: Tensor, detail: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Latent (B, D, T', H', W') and details (B,) int64 from 1 -> pixel frames (B, 3, T, H, W), new state.

        Without a state the first latent frame gives one frame, every other one `time_stride` frames.
        """
        x = self.stem(latent.movedim(1, -1)) + self.detail(detail - 1)[:, None, None, None]
        starts = state is None
        x, state = self.latents(x, state)
        x = self.group(x)
        x = x.unflatten(-1, (self.time_stride, -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
        if starts:
            x = x[:, self.time_stride - 1 :]
        for index, stage in enumerate(self.stages, start=1):
            x = depth_to_space(stage(x), 2 if index < len(self.stages) else self.patch)
        return x.movedim(-1, 1), state
