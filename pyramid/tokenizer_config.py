"""`TokenizerConfig`: all that a `PyramidTokenizer` is made from, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pyramid.nn.blocks import BlockStyle, Gelu
from pyramid.quantize import COMBINATIONS, LevelConfig

_DEFAULT_LEVELS = (
    LevelConfig("words", 1, 1, 1),
    LevelConfig("words", 1, 2, 2),
    LevelConfig("bits", 1, 2, 2, bits=12),
    LevelConfig("bits", 1, 4, 4, bits=12),
    LevelConfig("bits", 2, 4, 4, bits=12),
)

# The least values of a config's counts.
_LEAST = dict.fromkeys(
    (
        "height",
        "width",
        "num_frames",
        "patch",
        "channels",
        "time_stride",
        "chunk_frames",
        "dim",
        "latent_dim",
        "expand",
    ),
    1,
) | {"depth": 0, "depths": 0, "reader_depth": 0}


@dataclass(frozen=True)
class TokenizerConfig:
    """`height`, `width`, `num_frames`, `fps`: of the training clips; others work, levels' grids scale with them.
    `patch`: pixels a side that the first convolution takes as one cell; `channels`, `depths`: widths and blocks there
    and after each further halving of the frame.
    `time_stride`: pixel frames a latent frame; `chunk_frames`: pixel frames a chunk; `dim`, `depth`: width and number
    of the blocks at the latent's resolution; `latent_dim`: numbers of a latent; `kernel`, `expand`, `gelu`: of all
    blocks, as `BlockStyle` says; `adaptive_norm`: normalize the decoder's frames, and modulate them by their latents
    (AdaGN); `linear_path`: a linear map beside each network, from blocks of pixels to latents and back;
    `reader_depth`: layers of the network that reads the words off a chunk (`nn/reader.py`), 0 for off its latent alone;
    `combination`: how levels make up the latent, by sum ("residual") or by streaming average ("average", SPAE).
    Raises ValueError for values that no tokenizer can have."""

    height: int = 32
    width: int = 32
    num_frames: int = 9
    fps: float = 8.0
    patch: int = 2
    channels: tuple[int, ...] = (32, 96, 192)
    depths: tuple[int, ...] = (1, 2, 2)
    time_stride: int = 4
    chunk_frames: int = 8
    dim: int = 256
    depth: int = 3
    latent_dim: int = 64
    kernel: int = 3
    expand: int = 2
    gelu: Gelu = "tanh"
    adaptive_norm: bool = False
    linear_path: bool = True
    reader_depth: int = 2
    combination: Literal["residual", "average"] = "residual"
    levels: tuple[LevelConfig, ...] = _DEFAULT_LEVELS

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.depths) or not self.channels:
            found = f"{self.channels} and {self.depths}"
            raise ValueError(f"TokenizerConfig: channels and depths must have one entry a halving each, got {found}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if min(value if isinstance(value, Sequence) else [value]) < least:
                raise ValueError(f"TokenizerConfig: {name} must be at least {least}, got {value}")
        if not 0 < self.fps < math.inf:
            raise ValueError(f"TokenizerConfig: fps must be above 0 and finite, got {self.fps}")
        if self.combination not in COMBINATIONS:
            known = " or ".join(COMBINATIONS)
            raise ValueError(f"TokenizerConfig: combination must be {known}, got {self.combination!r}")
        if not self.levels:
            raise ValueError("TokenizerConfig: levels: expected at least one, got none")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"TokenizerConfig: kernel must be an odd number of at least 1, got {self.kernel}")
        if self.gelu not in get_args(Gelu):
            raise ValueError(f"TokenizerConfig: gelu must be one of {', '.join(get_args(Gelu))}, got {self.gelu!r}")
        if self.chunk_frames % self.time_stride:
            raise ValueError(
                f"TokenizerConfig: chunk_frames must be a multiple of time_stride {self.time_stride}, got "
                f"{self.chunk_frames}"
            )

    @property
    def size(self) -> tuple[int, int]:
        return (self.height, self.width)

    @property
    def stride(self) -> int:
        """Pixels a latent cell, along height and width."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def num_levels(self) -> int:
        return len(self.levels)

    @property
    def rim(self) -> int:
        """Latent cells a side that a pixel may reach, or be reached from, before frames meet or are mixed whole."""
        sides = [self.patch << index for index in range(len(self.channels))]  # pixels a cell of each width
        blocks = sum(side * depth * (self.kernel // 2) for side, depth in zip(sides, self.depths, strict=True))
        return -(
            -(blocks + self.patch + sum(sides[:-1])) // self.stride
        )  # and the outermost, and strided, convolutions

    @property
    def style(self) -> BlockStyle:
        return BlockStyle(self.kernel, self.expand, self.gelu)
