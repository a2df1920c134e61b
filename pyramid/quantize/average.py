"""Average combination: levels at dilated positions of the latent, put together by a streaming average (SPAE,
2306.17842, section 3: dilation subsampler, and streaming average quantization, SAQ).

A level with n cells along an axis of N positions stands at positions floor((2 i + 1) N / 2n), i = 0 .. n - 1: the
middles of n equal parts, which are SPAE's own positions where n divides N. There the latent z meets the codes of the
levels before, v_1 .. v_m at this position, and the level is asked for z + sum(z - v_i): the code that would bring the
mean of all codes to z. So codes stay at the scale of z on every level, and the latent at detail k is the *mean* of the
codes that the first k levels have at a position.

The coarse levels leave most positions without any code, which SPAE does not speak of. Here such a position takes the
code of level k, the last one, at the nearest of its positions (axis by axis; of two equally near the lower one).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pyramid.levels import Level, dilated_positions
from pyramid.quantize.level_stack import PyramidQuantizer, QuantizedLevel

# Shapes: as in level_stack.py; S = T H W positions of the latent, s = t h w of a level.


@lru_cache(maxsize=1024)
@torch.inference_mode(False)  # it may be trained with later
def _places(level: tuple[int, ...], grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The position (s,) of each cell of a level in the flat latent, and the nearest cell (S,) of each position."""
    positions = [dilated_positions(n, size) for n, size in zip(level, grid, strict=True)]
    nearest = [
        [min(range(len(places)), key=lambda i: (abs(p - places[i]), i)) for p in range(size)]
        for places, size in zip(positions, grid, strict=True)
    ]
    return _flat(positions, grid), _flat(nearest, level)


def _flat(axes: Sequence[Sequence[int]], grid: Sequence[int]) -> Tensor:
    t, h, w = (torch.tensor(axis) for axis in axes)
    return ((t[:, None, None] * grid[1] + h[:, None]) * grid[2] + w).flatten()


class _State(NamedTuple):
    latent: Tensor  # (B, D, T, H, W)
    total: Tensor  # (B, D, S): the sum of the codes at each position
    count: Tensor  # (S,) float32: how many they are
    fill: Tensor  # (B, D, S): the nearest code of the last level


class AveragePyramid(PyramidQuantizer):
    """Levels whose streaming average is the latent. Projections between latent and code space are each level's own."""

    def _start(self, latent: Tensor) -> _State:
        zeros = torch.zeros_like(latent).flatten(2)
        count = torch.zeros(zeros.shape[2], device=latent.device)
        return _State(latent, zeros, count, zeros)

    def _query(self, part: QuantizedLevel, state: _State, level: Level) -> Tensor:
        at = _places(level.grid, tuple(state.latent.shape[2:]))[0].to(state.latent.device)
        z, total = state.latent.flatten(2)[..., at], state.total[..., at]
        asked = z + (state.count[at].to(z) * z - total)
        asked = asked.unflatten(2, level.grid).movedim(1, -1)
        return part.project_in(part.before_pool(asked))

    def _add(self, state: _State, cells: Tensor) -> _State:
        places = _places(tuple(cells.shape[2:]), tuple(state.latent.shape[2:]))
        at, nearest = (index.to(cells.device) for index in places)
        flat = cells.flatten(2)
        total = state.total.to(cells.dtype).index_add(2, at, flat)
        count = state.count.index_add(0, at, torch.ones(len(at), device=cells.device))
        return _State(state.latent, total, count, flat[..., nearest])

    def _prefix(self, state: _State) -> Tensor:
        mean = state.total / state.count.clamp_min(1).to(state.total)
        return torch.where(state.count > 0, mean, state.fill).unflatten(2, state.latent.shape[2:])

    def combine(self, cells: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
        state = self._start(cells[0].new_zeros(*cells[0].shape[:2], *grid))
        for level in cells:
            state = self._add(state, level)
        return self._prefix(state)
