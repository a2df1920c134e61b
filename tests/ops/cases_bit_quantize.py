"""Rows of bit_quantize and its backward."""

from __future__ import annotations

from typing import Any

import torch
from ops.case import Make, Op, Sample, randn
from torch import Tensor

from pyramid import ops
from pyramid.ops import reference


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

OPS = (BIT_QUANTIZE, BIT_QUANTIZE_BACKWARD)
