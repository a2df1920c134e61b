"""Building blocks, channels-last: every tensor here is (B, T, H, W, C).

Causality is a property of every operation, not of padding alone: norms and the global context work on one latent frame
at a time, the temporal convolution sees the past only and takes its past from the caller (`state`), so that a chunk
after its state gives what the whole clip gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Gelu = Literal["tanh", "erf"]

# The past of one temporal convolution: the last `kernel - 1` latent frames it saw, (B, kernel - 1, H, W, C).
State = list[Tensor]


def stack_states(states: Sequence[State]) -> State:
    """The states of streams as that of one batch, in this order: streams of one frame size advance in one pass,
    wherever each of them is. Raises ValueError for none, and for states that are not of one network and frame size."""
    if not states:
        raise ValueError("stack_states: expected the state of at least one stream, got none")
    shapes = [[tuple(past.shape[1:]) for past in state] for state in states]
    if any(shape != shapes[0] for shape in shapes):
        other = next(shape for shape in shapes if shape != shapes[0])
        raise ValueError(f"stack_states: expected states of one shape {shapes[0]}, got {other}")
    return [torch.cat(pasts) for pasts in zip(*states, strict=True)]


def split_state(state: State, sizes: int | Sequence[int] = 1) -> list[State]:
    """The inverse of `stack_states`: `sizes` rows for each stream, or a number a stream where they differ."""
    parts = [past.split(sizes if isinstance(sizes, int) else list(sizes)) for past in state]
    return [list(pasts) for pasts in zip(*parts, strict=True)]


class FrameConv(nn.Module):
    """2-D convolution of every frame: (B, T, H, W, C) -> (B, T, H / stride, W / stride, C')."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, kernel, stride=stride, padding=(kernel - 1) // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x.flatten(0, 1).permute(0, 3, 1, 2))  # a channels_last tensor, without a copy
        return out.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of a network share. `kernel`: side of the depthwise convolutions; `expand`: hidden numbers of an
    MLP for each of its inputs; `gelu`: "erf", exact, or its approximation "tanh", which takes five times as long on a
    CPU (docs/experiments.md)."""

    kernel: int = 3
    expand: int = 2
    gelu: Gelu = "tanh"


class FeedForward(nn.Module):
    def __init__(self, dim: int, style: BlockStyle) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, dim * style.expand)
        self.gelu = nn.GELU("tanh" if style.gelu == "tanh" else "none")
        self.down = nn.Linear(dim * style.expand, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.gelu(self.up(self.norm(x))))


class FrameBlock(nn.Module):
    """Spatial mixing by a depthwise convolution, channel mixing by an MLP (ConvNeXt, 2201.03545)."""

    def __init__(self, dim: int, style: BlockStyle) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = FrameConv(dim, dim, style.kernel, groups=dim)
        self.mlp = FeedForward(dim, style)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x + self.conv(self.norm(x)))


class CausalTimeConv(nn.Module):
    """Full convolution along time of every position: output t sees inputs t - kernel + 1 .. t."""

    def __init__(self, dim: int, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = kernel
        self.linear = nn.Linear(kernel * dim, dim)

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, H, W, C) after `past` (zeros at the start of a clip) -> output of the same shape, new past."""
        if past is None:
            past = x.new_zeros(x.shape[0], self.kernel - 1, *x.shape[2:])
        history = torch.cat([past.to(x.dtype), x], dim=1)
        windows = torch.cat([history[:, k : k + x.shape[1]] for k in range(self.kernel)], dim=-1)
        return self.linear(windows), history[:, x.shape[1] :].clone()  # a view would keep all of the history


class LatentBlock(nn.Module):
    """Mixing at the latent's resolution: space (depthwise), the frame as a whole (mean), the past, channels."""

    def __init__(self, dim: int, style: BlockStyle) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.space = FrameConv(dim, dim, style.kernel, groups=dim)
        self.context = nn.Linear(dim, dim)
        self.time_norm = nn.LayerNorm(dim)
        self.time = CausalTimeConv(dim)
        self.mlp = FeedForward(dim, style)

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        y = self.norm(x)
        x = x + self.space(y) + self.context(y.mean(dim=(2, 3), keepdim=True))
        y, past = self.time(self.time_norm(x), past)
        return self.mlp(x + y), past


class LatentStack(nn.Module):
    """Blocks in a row; their state is a list with one past a block."""

    def __init__(self, dim: int, depth: int, style: BlockStyle) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(LatentBlock(dim, style) for _ in range(depth))

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        new_state: State = []
        for index, block in enumerate(self.blocks):
            x, past = block(x, None if state is None else state[index])
            new_state.append(past)
        return x, new_state


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """(B, T, H, W, C) -> (B, T, H / f, W / f, f f C)"""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // factor, factor, w // factor, factor, c)
    return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h // factor, w // factor, factor * factor * c)


def depth_to_space(x: Tensor, factor: int) -> Tensor:
    """(B, T, H, W, f f C) -> (B, T, H f, W f, C), the inverse of `space_to_depth`."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, factor, factor, c // (factor * factor))
    return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h * factor, w * factor, c // (factor * factor))
