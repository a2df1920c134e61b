"""Rows of code_logsumexp and of its backward by the codebook."""

from __future__ import annotations

import torch
from ops.case import Make, Op, Sample, randn

from pyramid import ops
from pyramid.ops import reference


def vectors(lead: tuple[int, ...], num_codes: int, dim: int, tau: float, shift: float = 0.0) -> Make:
    return lambda dtype, device: (
        randn((*lead, dim), dtype, device, shift=shift),
        randn((num_codes, dim), dtype, device, shift=shift),
        tau,
    )


def with_logsumexp(make: Make) -> Make:
    def make_all(dtype, device):
        z, codebook, tau = make(dtype, device)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        lse = reference.code_logsumexp(z.double(), codebook.double(), tau).to(wide)
        return randn(tuple(z.shape[:-1]), wide, device), z, codebook, lse, tau

    return make_all


def native(z, codebook, tau):
    return torch.ops.pyramid.code_logsumexp.default(z, codebook, tau)


def plain(z, codebook, tau):
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    pull = reference.mean_code(z, codebook, tau) - z.to(wide)
    return reference.code_logsumexp(z, codebook, tau), pull.detach()


def native_backward(*args):
    return torch.ops.pyramid.code_logsumexp_backward.default(*args)


SAMPLES = [
    ("one", vectors((), 1, 1, 0.7)),
    ("small", vectors((2, 3), 5, 4, 1.3)),
    ("tail of every tile", vectors((129,), 301, 7, 2.0)),
    ("wide", vectors((31,), 130, 130, 50.0)),
    ("wider than a block", vectors((5,), 70, 300, 200.0)),
    ("sharp", vectors((400,), 300, 20, 0.05)),
    ("far from zero", vectors((50,), 300, 9, 3.0, shift=40.0)),
]

CODE_LOGSUMEXP = Op(
    name="code_logsumexp",
    native=native,
    reference=plain,
    samples=[Sample(name, make) for name, make in SAMPLES],
    empty=Sample("no rows", vectors((3, 0), 4, 2, 1.0)),
    differentiable=(0,),
    gradcheck=lambda *args: native(*args)[0],
    errors=[
        ("width", ValueError, r"code_logsumexp: expected z .* got \(2, 3\) and \(4, 5\)",
         lambda device: ops.code_logsumexp(torch.zeros(2, 3, device=device), torch.zeros(4, 5, device=device), 1.0)),
        ("no codes", ValueError, r"got \(2, 3\) and \(0, 3\)",
         lambda device: ops.code_logsumexp(torch.zeros(2, 3, device=device), torch.zeros(0, 3, device=device), 1.0)),
        ("tau", ValueError, "tau > 0, got 0",
         lambda device: ops.code_logsumexp(torch.zeros(2, 3, device=device), torch.zeros(4, 3, device=device), 0)),
        ("two dtypes", TypeError, "one dtype.*got torch.float32 and torch.float64",
         lambda device: ops.code_logsumexp(torch.zeros(2, 3), torch.zeros(4, 3).double(), 1.0)),
        ("raw: width", RuntimeError, r"code_logsumexp: z must be .*got \(2, 3\) and \(4, 5\)",
         lambda device: native(torch.zeros(2, 3, device=device), torch.zeros(4, 5, device=device), 1.0)),
        ("raw: tau", RuntimeError, "tau must be positive, got -1",
         lambda device: native(torch.zeros(2, 3, device=device), torch.zeros(4, 3, device=device), -1.0)),
        ("raw: integers", RuntimeError, "z must be float32.*got Long",
         lambda device: native(torch.zeros(2, 3).long().to(device), torch.zeros(4, 3).long().to(device), 1.0)),
    ],
)  # fmt: skip

BACKWARD = Op(
    name="code_logsumexp_backward",
    native=native_backward,
    reference=reference.code_logsumexp_backward,
    samples=[Sample(name, with_logsumexp(make)) for name, make in SAMPLES],
    empty=Sample("no rows", with_logsumexp(vectors((3, 0), 4, 2, 1.0))),
    errors=[
        ("shape", RuntimeError, r"grad does not fit z \(2, 3\), got \(3,\)",
         lambda device: native_backward(
             torch.zeros(3, device=device), torch.zeros(2, 3, device=device), torch.zeros(4, 3, device=device),
             torch.zeros(2, device=device), 1.0)),
        ("dtype", RuntimeError, "logsumexp must be Float, got Double",
         lambda device: native_backward(
             torch.zeros(2, device=device), torch.zeros(2, 3, device=device), torch.zeros(4, 3, device=device),
             torch.zeros(2, device=device).double(), 1.0)),
    ],
)  # fmt: skip

OPS = (CODE_LOGSUMEXP, BACKWARD)
