"""The table of the compiled ops: one row per schema of the namespace `pyramid`, checked row by row in test_ops.py.

A new op needs a row here, or test_coverage.py fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyramid import ops
from pyramid.ops import reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# A device and generator make the tensors: make(dtype, device) -> arguments.
Make = Callable[[torch.dtype, torch.device], tuple[Any, ...]]


@dataclass(frozen=True)
class Sample:
    name: str
    make: Make


@dataclass(frozen=True)
class Op:
    """`native` and `reference` take the same arguments and return tensors in the same order."""

    name: str  # in torch.ops.pyramid
    native: Callable[..., Any]
    reference: Callable[..., Any]
    samples: Sequence[Sample]  # the first two are small: gradcheck takes them
    empty: Sample
    errors: Sequence[tuple[str, type[Exception], str, Callable[[torch.device], Any]]]
    integers: tuple[int, ...] = ()  # outputs that are integers
    # Of the outputs, those whose gradient is compared with autograd of the reference; () = not differentiable.
    differentiable: tuple[int, ...] = ()
    gradcheck: Callable[..., Any] | None = None  # arguments -> the outputs that a difference quotient can see
    dtypes: tuple[torch.dtype, ...] = field(default=FLOATS)


def randn(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, scale: float = 1.0, shift: float = 0.0):
    return (torch.randn(shape, dtype=torch.float64) * scale + shift).to(dtype).to(device)


# -- nearest_code ------------------------------------------------------------------------------------------------------


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


# -- bit_quantize ------------------------------------------------------------------------------------------------------


def bits(lead: tuple[int, ...], num_bits: int, temperature: float, scale: float = 1.0) -> Make:
    return lambda dtype, device: (randn((*lead, num_bits), dtype, device, scale), temperature)


def edges(dtype, device):
    values = [0.0, -0.0, 1.0, -1.0, 1e-6, -1e-6, 30.0, -30.0, 6e4, -6e4]
    return torch.tensor(values, dtype=dtype, device=device).reshape(2, 5), 0.5


def bit_quantize_native(x: Tensor, temperature: float):
    return torch.ops.pyramid.bit_quantize.default(x, temperature)


BIT_QUANTIZE = Op(
    name="bit_quantize",
    native=bit_quantize_native,
    reference=reference.bit_quantize,
    samples=[
        Sample("one", bits((), 1, 1.0)),
        Sample("small", bits((2, 3), 5, 0.7)),
        Sample("18 bits", bits((257,), 18, 1.0)),
        Sample("62 bits", bits((35,), 62, 4.0)),
        Sample("33 bits over two words", bits((150,), 33, 0.1)),
        Sample("saturated", bits((40,), 11, 0.01, scale=100.0)),
        Sample("edges", edges),
    ],
    empty=Sample("no rows", bits((0, 4), 6, 1.0)),
    integers=(1,),
    differentiable=(0, 2, 3),
    gradcheck=lambda x, temperature: bit_quantize_native(x, temperature)[2:],
    errors=[
        ("too many bits", ValueError, r"1 <= d <= 62, got \(2, 63\)",
         lambda device: ops.bit_quantize(torch.zeros(2, 63, device=device), 1.0)),
        ("no bits", ValueError, r"1 <= d <= 62, got \(2, 0\)",
         lambda device: ops.bit_quantize(torch.zeros(2, 0, device=device), 1.0)),
        ("temperature", ValueError, "temperature > 0, got 0",
         lambda device: ops.bit_quantize(torch.zeros(2, 3, device=device), 0.0)),
        ("integers", TypeError, "got torch.int64",
         lambda device: ops.bit_quantize(torch.zeros(2, 3).long().to(device), 1.0)),
        ("raw: bits", RuntimeError, r"bit_quantize: x must be .*got \(2, 63\)",
         lambda device: bit_quantize_native(torch.zeros(2, 63, device=device), 1.0)),
        ("raw: temperature", RuntimeError, "bit_quantize: temperature must be positive, got -1",
         lambda device: bit_quantize_native(torch.zeros(2, 3, device=device), -1.0)),
        ("raw: integers", RuntimeError, "bit_quantize: x must be float32.*got Long",
         lambda device: bit_quantize_native(torch.zeros(2, 3).long().to(device), 1.0)),
    ],
)  # fmt: skip


def with_grads(make: Make, codes: bool = True, entropy: bool = True, commitment: bool = True) -> Make:
    def make_all(dtype, device):
        x, temperature = make(dtype, device)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        rows = tuple(x.shape[:-1])
        return (
            x,
            temperature,
            randn(tuple(x.shape), dtype, device) if codes else None,
            randn(rows, wide, device) if entropy else None,
            randn(rows, wide, device) if commitment else None,
        )

    return make_all


def bit_quantize_backward_native(*args: Any):
    return torch.ops.pyramid.bit_quantize_backward.default(*args)


BIT_QUANTIZE_BACKWARD = Op(
    name="bit_quantize_backward",
    native=bit_quantize_backward_native,
    reference=reference.bit_quantize_backward,
    samples=[
        Sample("one", with_grads(bits((), 1, 1.0))),
        Sample("small", with_grads(bits((2, 3), 5, 0.7))),
        Sample("18 bits", with_grads(bits((257,), 18, 1.0))),
        Sample("62 bits", with_grads(bits((35,), 62, 4.0))),
        Sample("saturated", with_grads(bits((40,), 11, 0.01, scale=100.0))),
        Sample("edges", with_grads(edges)),
        Sample("codes only", with_grads(bits((3, 4), 5, 1.0), entropy=False, commitment=False)),
        Sample("entropy only", with_grads(bits((3, 4), 5, 1.0), codes=False, commitment=False)),
        Sample("commitment only", with_grads(bits((3, 4), 5, 1.0), codes=False, entropy=False)),
    ],
    empty=Sample("no rows", with_grads(bits((0, 4), 6, 1.0))),
    differentiable=(0,),
    gradcheck=bit_quantize_backward_native,
    errors=[
        ("shape", RuntimeError, r"grad_entropy does not fit x \(2, 3\), got \(3,\)",
         lambda device: bit_quantize_backward_native(
             torch.zeros(2, 3, device=device), 1.0, None, torch.zeros(3, device=device), None)),
        ("dtype", RuntimeError, "grad_codes must be Float, got Double",
         lambda device: bit_quantize_backward_native(
             torch.zeros(2, 3, device=device), 1.0, torch.zeros(2, 3, device=device).double(), None, None)),
    ],
)  # fmt: skip

OPS = (NEAREST_CODE, BIT_QUANTIZE, BIT_QUANTIZE_BACKWARD)
