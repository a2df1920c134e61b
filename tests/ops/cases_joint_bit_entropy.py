"""Rows of joint_bit_sum and its backward, what joint_bit_entropy is made of."""

from __future__ import annotations

import torch
from ops.case import Make, Op, Sample, randn

from pyramid import ops
from pyramid.ops import reference


def bits(num_rows: int, num_bits: int, temperature: float, scale: float = 1.0) -> Make:
    return lambda dtype, device: (randn((num_rows, num_bits), dtype, device, scale), temperature)


def with_grad(make: Make) -> Make:
    def make_all(dtype, device):
        x, temperature = make(dtype, device)
        low = x.shape[1] // 2
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return randn((1 << low, 1 << (x.shape[1] - low)), wide, device), x, temperature

    return make_all


SAMPLES = [
    Sample("one", bits(1, 1, 1.0)),
    Sample("small", bits(5, 4, 0.7)),
    Sample("9 bits", bits(33, 9, 2.0)),
    Sample("13 bits", bits(300, 13, 1.0)),
    Sample("16 bits", bits(70, 16, 4.0)),
    Sample("2 bits", bits(200, 2, 1.0)),
    Sample("7 bits", bits(129, 7, 1.0)),
    Sample("saturated", bits(40, 11, 0.1, scale=5.0)),
]


def joint_bit_sum_native(x, temperature):
    return torch.ops.pyramid.joint_bit_sum.default(x, temperature)


def joint_bit_sum_backward_native(grad, x, temperature):
    return torch.ops.pyramid.joint_bit_sum_backward.default(grad, x, temperature)


JOINT_BIT_SUM = Op(
    name="joint_bit_sum",
    native=joint_bit_sum_native,
    reference=reference.joint_bit_sum,
    samples=SAMPLES,
    empty=Sample("no rows", bits(0, 6, 1.0)),
    differentiable=(0,),
    gradcheck=joint_bit_sum_native,
    large=Sample("large", bits(2000, 16, 1.0)),
    errors=[
        ("too many bits", ValueError, r"1 <= d <= 28, got \(2, 40\)",
         lambda device: ops.joint_bit_entropy(torch.zeros(2, 40, device=device), 1.0)),
        ("no rows", ValueError, "at least one row",
         lambda device: ops.joint_bit_entropy(torch.zeros(0, 4, device=device), 1.0)),
        ("temperature", ValueError, "temperature > 0, got -1",
         lambda device: ops.joint_bit_entropy(torch.zeros(2, 4, device=device), -1)),
        ("integers", TypeError, "got torch.int64",
         lambda device: ops.joint_bit_entropy(torch.zeros(2, 4, device=device).long(), 1.0)),
        ("raw: bits", RuntimeError, r"joint_bit_sum: x must be .*got \(2, 29\)",
         lambda device: joint_bit_sum_native(torch.zeros(2, 29, device=device), 1.0)),
        ("raw: temperature", RuntimeError, "joint_bit_sum: temperature must be positive, got 0",
         lambda device: joint_bit_sum_native(torch.zeros(2, 4, device=device), 0.0)),
        ("raw: integers", RuntimeError, "joint_bit_sum: x must be float32.*got Long",
         lambda device: joint_bit_sum_native(torch.zeros(2, 4, device=device).long(), 1.0)),
    ],
)  # fmt: skip

JOINT_BIT_SUM_BACKWARD = Op(
    name="joint_bit_sum_backward",
    native=joint_bit_sum_backward_native,
    reference=reference.joint_bit_sum_backward,
    samples=[Sample(sample.name, with_grad(sample.make)) for sample in SAMPLES],
    empty=Sample("no rows", with_grad(bits(0, 6, 1.0))),
    differentiable=(0,),
    gradcheck=joint_bit_sum_backward_native,
    large=Sample("large", with_grad(bits(2000, 16, 1.0))),
    errors=[
        ("shape", RuntimeError, r"grad must be \(4, 8\) for x \(2, 5\), got \(8, 4\)",
         lambda device: joint_bit_sum_backward_native(
             torch.zeros(8, 4, device=device), torch.zeros(2, 5, device=device), 1.0)),
        ("dtype", RuntimeError, "grad must be Float, got Double",
         lambda device: joint_bit_sum_backward_native(
             torch.zeros(4, 8, device=device).double(), torch.zeros(2, 5, device=device), 1.0)),
    ],
)  # fmt: skip

OPS = (JOINT_BIT_SUM, JOINT_BIT_SUM_BACKWARD)
