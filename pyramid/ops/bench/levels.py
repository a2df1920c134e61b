"""Cases of `level_resample` and `pyramid_sum` on the shapes of a tokenizer, the shipped one and a larger: against
adaptive pooling, interpolation and sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyramid import ops
from pyramid.ops.bench.measure import Call, Case, Contest, compiled, forward_backward

Grid = tuple[int, int, int]
SMALL = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 4, 4), (2, 4, 4))
LARGE = ((1, 1, 1), (1, 4, 4), (2, 8, 8), (4, 16, 16), (4, 32, 32))


def cases(device: str) -> list[Case]:
    out = []
    for batch, channels, old, new, last in (
        (16, 256, SMALL[-1], SMALL[1], True),
        (16, 64, SMALL[1], SMALL[-1], True),
        (4, 64, LARGE[-1], LARGE[2], False),
        (4, 64, LARGE[2], LARGE[-1], False),
    ):
        name = f"{batch}x{channels}{' last' if last else ''}, {_text(old)} to {_text(new)}, forward+backward"
        out.append(Case("level_resample", name, device, resample(batch, channels, old, new, last)))
    for batch, grids in ((16, SMALL), (4, LARGE)):
        name = f"{batch}x64, 5 levels to {_text(grids[-1])}, forward+backward"
        out.append(Case("pyramid_sum", name, device, summed(batch, 64, grids)))
    return out


def _text(grid: Grid) -> str:
    return "x".join(map(str, grid))


def resample(
    batch: int, channels: int, old: Grid, new: Grid, channels_last: bool = False
) -> Callable[[torch.device], Contest]:
    """Either down or up along every axis, by whole factors; the tokenizer's linear layers leave the channels last."""
    down = all(n <= o for n, o in zip(new, old, strict=True))

    def make(device: torch.device) -> Contest:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, channels, *old, generator=generator).to(device)
        if channels_last:
            x = x.to(memory_format=torch.channels_last_3d)
        x.requires_grad_()
        if down:
            functions = {"adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(x, new), "mean": lambda x: mean(x, new)}
        else:
            functions = {"interpolate": lambda x: F.interpolate(x, size=new), "expand": lambda x: expand(x, new)}
        return Contest(forward_backward(lambda x: ops.level_resample(x, new), x), _rivals(functions, x))

    return make


def summed(batch: int, channels: int, grids: Sequence[Grid]) -> Callable[[torch.device], Contest]:
    def plain(up: Callable[[Tensor, Grid], Tensor]) -> Callable[..., Tensor]:
        def total(*codes: Tensor) -> Tensor:
            out = codes[-1]
            for code in codes[:-1]:
                out = out + up(code, grids[-1])
            return out

        return total

    def make(device: torch.device) -> Contest:
        generator = torch.Generator().manual_seed(0)
        codes = [torch.randn(batch, channels, *grid, generator=generator).to(device).requires_grad_() for grid in grids]
        ours = forward_backward(lambda *codes: ops.pyramid_sum(codes, grids, len(grids)), *codes)
        functions = {"interpolate": plain(lambda x, size: F.interpolate(x, size=size)), "expand": plain(expand)}
        return Contest(ours, _rivals(functions, *codes))

    return make


def expand(x: Tensor, size: Grid) -> Tensor:
    """Nearest, each size a multiple of the axis: without copies until the end."""
    t, h, w = x.shape[2:]
    factors = [new // old for new, old in zip(size, (t, h, w), strict=True)]
    x = x[:, :, :, None, :, None, :, None].expand(-1, -1, t, factors[0], h, factors[1], w, factors[2])
    return x.reshape(*x.shape[:2], *size)


def mean(x: Tensor, size: Grid) -> Tensor:
    """Area, each axis a multiple of its size."""
    split = [part for new, old in zip(size, x.shape[2:], strict=True) for part in (new, old // new)]
    return x.reshape(*x.shape[:2], *split).mean((3, 5, 7))


def _rivals(functions: dict[str, Callable[..., Tensor]], *inputs: Tensor) -> dict[str, Call | str]:
    """Each eager; the second, made of ops that torch.compile fuses, compiled too (it has no code for interpolate's
    backward on the CPU)."""
    rivals: dict[str, Call | str] = {name: forward_backward(call, *inputs) for name, call in functions.items()}
    name, call = list(functions.items())[1]
    rivals[f"{name}, compiled"] = forward_backward(compiled(call), *inputs)
    return rivals
