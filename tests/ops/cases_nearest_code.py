"""Rows of nearest_code."""

from __future__ import annotations

import torch
from ops.case import Make, Op, Sample, randn
from torch import Tensor

from pyramid import ops
from pyramid.ops import reference


def vectors(lead: tuple[int, ...], num_codes: int, dim: int, scale: float = 1.0, shift: float = 0.0) -> Make:
    def make(dtype, device):
        return (
            randn((*lead, dim), dtype, device, scale, shift),
            randn((num_codes, dim), dtype, device, scale, shift),
        )

    return make


def spread_norms(dtype, device):
    """Codes whose norms span four powers of ten: one bound for all would admit everything."""
    codes = torch.randn(700, 12, dtype=torch.float64) * torch.logspace(-2, 2, 700, dtype=torch.float64)[:, None]
    return randn((90, 12), dtype, device), codes[torch.randperm(700)].to(dtype).to(device)


def duplicates(dtype, device):
    codes = randn((40, 5), dtype, device).repeat(7, 1)
    return codes[torch.randint(280, (33,), device=device)] + 0.125, codes


def nearest_code_native(z: Tensor, codebook: Tensor):
    return torch.ops.pyramid.nearest_code.default(z, codebook)


def nearest_code_reference(z: Tensor, codebook: Tensor):
    ids, distance = reference.nearest_code(z, codebook)
    return distance, ids


NEAREST_CODE = Op(
    name="nearest_code",
    native=nearest_code_native,
    reference=nearest_code_reference,
    samples=[
        Sample("one", vectors((), 1, 1)),
        Sample("small", vectors((2, 3), 5, 4)),
        Sample("tail of every tile", vectors((129,), 301, 7)),
        Sample("wide", vectors((31,), 67, 130)),
        Sample("far from zero", vectors((50,), 300, 9, shift=40.0)),
        Sample("spread norms", spread_norms),
        Sample("duplicates", duplicates),
    ],
    empty=Sample("no rows", vectors((3, 0), 4, 2)),
    integers=(1,),
    differentiable=(0,),
    gradcheck=lambda z, codebook: nearest_code_native(z, codebook)[0],
    errors=[
        ("width", ValueError, r"z \(\.\.\., D\).*got \(2, 3\) and \(4, 5\)",
         lambda device: ops.nearest_code(torch.zeros(2, 3, device=device), torch.zeros(4, 5, device=device))),
        ("no codes", ValueError, "at least one code, got none",
         lambda device: ops.nearest_code(torch.zeros(2, 3, device=device), torch.zeros(0, 3, device=device))),
        ("two dtypes", TypeError, "one dtype.*got torch.float32 and torch.float64",
         lambda device: ops.nearest_code(torch.zeros(2, 3, device=device), torch.zeros(4, 3, device=device).double())),
        ("integers", TypeError, "got torch.int64",
         lambda device: ops.nearest_code(torch.zeros(2, 3).long().to(device), torch.zeros(4, 3).long().to(device))),
        ("two devices", ValueError, "one device, got z on .* and codebook on meta",
         lambda device: ops.nearest_code(torch.zeros(2, 3, device=device), torch.zeros(4, 3, device="meta"))),
        ("raw: width", RuntimeError, r"nearest_code: z must be .*got \(2, 3\) and \(4, 5\)",
         lambda device: nearest_code_native(torch.zeros(2, 3, device=device), torch.zeros(4, 5, device=device))),
        ("raw: dtype", RuntimeError, "nearest_code: z and codebook must have one dtype, got Float and Double",
         lambda device: nearest_code_native(torch.zeros(2, 3).to(device), torch.zeros(4, 3).double().to(device))),
        ("raw: integers", RuntimeError, "nearest_code: z must be float32.*got Long",
         lambda device: nearest_code_native(torch.zeros(2, 3).long().to(device), torch.zeros(4, 3).long().to(device))),
    ],
)  # fmt: skip

OPS = (NEAREST_CODE,)
