"""Every CUDA operator, kernels and checks and workspaces, on the host: the samples of the case table, without a GPU."""

from __future__ import annotations

import re

import pytest
import torch
from cuda_emulator.library import CSRC, compiler, emulated_ops, emulated_stems, kernels_of
from ops.case import Op, Sample, plain_on_cuda
from ops.cases import OPS
from ops.test_ops import check_values, every_dtype, outputs, pairs, strided

pytestmark = pytest.mark.skipif(compiler() is None, reason="the emulator needs a C++ compiler, none found")


def emulated(op: Op):
    if op.name.removesuffix("_backward") not in emulated_stems():
        pytest.skip(f"{op.name}: its kernels are not written with cuda_device.cuh")
    registered = getattr(emulated_ops(), op.name).default
    return lambda *args: op.from_cuda(registered(*op.to_cuda(*op.pack(*args))))


@pytest.fixture(autouse=True)
def unwritten_outputs_are_nan():
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize(("op", "sample"), pairs())
@every_dtype
def test_values(op: Op, sample: Sample, dtype):
    args = sample.make(dtype, torch.device("cpu"))
    check_values(op, outputs(emulated(op)(*args)), args, plain_on_cuda(op, dtype))


@pytest.mark.parametrize(("op", "sample"), pairs())
def test_strides_do_not_matter(op: Op, sample: Sample):
    args = sample.make(torch.float32, torch.device("cpu"))
    for got, expected in zip(outputs(emulated(op)(*strided(args))), outputs(emulated(op)(*args)), strict=True):
        assert torch.equal(got, expected) and (op.keeps_layout or got.is_contiguous())


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@every_dtype
def test_empty(op: Op, dtype):
    args = op.empty.make(dtype, torch.device("cpu"))
    for got, expected in zip(outputs(emulated(op)(*args)), outputs(op.reference(*args)), strict=True):
        assert got.shape == expected.shape and got.dtype == expected.dtype


def test_a_kernel_keeps_to_what_the_emulator_knows():
    banned = re.compile(r"<<<|\basm\b|extern __shared__")
    files = [path for stem in emulated_stems() for path in kernels_of(stem)]
    files += [p for p in (CSRC / "kernels").glob("*.cuh") if p.name != "cuda_device.cuh"]
    assert [p.name for p in files if banned.search(p.read_text(encoding="utf8"))] == []
