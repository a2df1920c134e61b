"""Residual combination: each level quantizes what the levels before it left over, on a grid of its own (VAR,
2404.02905, algorithms 1 and 2).

Per level: mix the residual and pool it to the level's grid, quantize, project back, put back on the latent's grid,
subtract. The sum of the first k levels is the latent at detail k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyramid import ops
from pyramid.levels import Level
from pyramid.quantize.level_stack import PyramidQuantizer, QuantizedLevel


class _State(NamedTuple):
    residual: Tensor  # (B, D, T, H, W)
    total: Tensor  # (B, D, T, H, W)


class ResidualPyramid(PyramidQuantizer):
    """Levels whose sum is the latent."""

    def _start(self, latent: Tensor) -> _State:
        return _State(latent, torch.zeros_like(latent))

    def _query(self, part: QuantizedLevel, state: _State, level: Level) -> Tensor:
        x = part.before_pool(state.residual.movedim(1, -1)).movedim(-1, 1)
        return part.project_in(ops.level_resample(x, level.grid).movedim(1, -1))

    def _add(self, state: _State, cells: Tensor) -> _State:
        value = ops.level_resample(cells, tuple(state.residual.shape[2:]))
        return _State(state.residual - value, state.total + value)

    def _prefix(self, state: _State) -> Tensor:
        return state.total

    def combine(self, cells: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
        grids = [tuple(level.shape[2:]) for level in cells]
        return ops.pyramid_sum(list(cells), [*grids, tuple(grid)], len(cells))
