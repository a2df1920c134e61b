"""Every check on every row of the table in cases.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numerics import assert_no_worse
from ops.case import Op, Sample, plain_on_cuda
from ops.cases import OPS
from torch import Tensor

NO_GRADIENT = "the op has no gradient"
DTYPE_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64"}


def pairs(*, only_gradient: bool = False):
    return [
        pytest.param(op, sample, id=f"{op.name}-{sample.name.replace(' ', '_')}")
        for op in OPS
        for sample in op.samples
        if op.differentiable or not only_gradient
    ]


every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
every_dtype = pytest.mark.parametrize("dtype", DTYPE_NAMES, ids=DTYPE_NAMES.values())


def outputs(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def convert(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    floating = lambda a: isinstance(a, Tensor) and a.is_floating_point()  # noqa: E731
    return tuple(a.to(dtype) if floating(a) else a for a in args)


def require_grad(args: tuple[Any, ...]) -> tuple[Any, ...]:
    floating = lambda a: isinstance(a, Tensor) and a.is_floating_point()  # noqa: E731
    return tuple(a.detach().requires_grad_() if floating(a) else a for a in args)


def strided(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values as a slice of a larger buffer, transposed where there are two axes."""

    def spread(a: Tensor) -> Tensor:
        buffer = a.new_zeros(*(2 * n + 1 for n in a.shape[::-1]))
        view = buffer[tuple(slice(1, 2 * n + 1, 2) for n in a.shape[::-1])]
        view = view.permute(*range(a.ndim - 1, -1, -1))
        view.copy_(a)
        return view

    return tuple(spread(a) if isinstance(a, Tensor) and a.ndim else a for a in args)


def check_values(op: Op, got: tuple[Tensor, ...], args: tuple[Any, ...], plain_of: Any = None) -> None:
    """Against plain PyTorch at the same precision and in float64; integers must be equal."""
    plain = outputs((plain_of or op.reference)(*args))
    truth = outputs(op.reference(*convert(args, torch.float64)))
    assert len(got) == len(plain)
    for index, (g, p, t) in enumerate(zip(got, plain, truth, strict=True)):
        assert g.dtype == p.dtype and g.device == p.device
        if index in op.integers:
            assert torch.equal(g, t), f"{op.name}: output {index} differs"
        else:
            assert_no_worse(g, p, t, f"{op.name}, output {index}")


@pytest.mark.parametrize(("op", "sample"), pairs())
@every_dtype
def test_values(op: Op, sample: Sample, dtype, native, instruction_set):
    if native.type != "cpu" and instruction_set != "base":
        pytest.skip("one run is enough: instruction sets are of the CPU")
    args = sample.make(dtype, native)
    plain = plain_on_cuda(op, dtype) if native.type == "cuda" else op.reference
    check_values(op, outputs(op.native(*args)), args, plain)


@pytest.mark.parametrize(("op", "sample"), pairs())
def test_strides_do_not_matter(op: Op, sample: Sample, native):
    args = sample.make(torch.float32, native)
    for got, expected in zip(outputs(op.native(*strided(args))), outputs(op.native(*args)), strict=True):
        assert torch.equal(got, expected) and (op.keeps_layout or got.is_contiguous())


@every_op
@every_dtype
def test_empty(op: Op, dtype, native):
    args = op.empty.make(dtype, native)
    for got, expected in zip(outputs(op.native(*args)), outputs(op.reference(*args)), strict=True):
        assert got.shape == expected.shape and got.dtype == expected.dtype


@every_op
def test_opcheck(op: Op, native):
    for dtype, sample in ((torch.float32, op.samples[1]), (torch.bfloat16, op.samples[0]), (torch.float32, op.empty)):
        args = sample.make(dtype, native)
        registered = getattr(torch.ops.pyramid, op.name).default
        torch.library.opcheck(registered, op.pack(*(require_grad(args) if op.differentiable else args)))


@every_op
def test_compiles_in_one_graph(op: Op, native):
    args = op.samples[1].make(torch.float32, native)
    # The frontend and autograd are what an op can break; a code generator would only add minutes.
    compiled = torch.compile(op.native, fullgraph=True, backend="aot_eager")
    for got, expected in zip(outputs(compiled(*args)), outputs(op.native(*args)), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("op", "sample"), pairs(only_gradient=True))
@every_dtype
def test_gradient_is_that_of_the_reference(op: Op, sample: Sample, dtype, native):
    args = sample.make(dtype, native)

    def gradients(function, args, cotangents):
        args = require_grad(args)
        out = [outputs(function(*args))[i] for i in op.differentiable]
        leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
        cotangents = [c.to(o.dtype) for c, o in zip(cotangents, out, strict=True)]
        return torch.autograd.grad(out, leaves, cotangents, allow_unused=True, materialize_grads=True)

    cotangents = [torch.randn_like(outputs(op.native(*args))[i]) for i in op.differentiable]
    got = gradients(op.native, args, cotangents)
    plain_of = plain_on_cuda(op, dtype) if native.type == "cuda" else op.reference
    plain = gradients(plain_of, args, cotangents)
    truth = gradients(op.reference, convert(args, torch.float64), cotangents)
    for index, (g, p, t) in enumerate(zip(got, plain, truth, strict=True)):
        assert g.dtype == p.dtype
        assert_no_worse(g, p, t, f"{op.name}, gradient {index}")


@every_op
def test_gradcheck(op: Op, native):
    if op.gradcheck is None:
        pytest.skip(NO_GRADIENT)
    for sample in op.samples[:2]:
        args = require_grad(sample.make(torch.float64, native))
        assert torch.autograd.gradcheck(op.gradcheck, args)


ERRORS = [
    pytest.param(error, id=f"{op.name}-{error[0].replace(' ', '_').replace(':', '')}")
    for op in OPS
    for error in op.errors
]


@pytest.mark.parametrize("error", ERRORS)
def test_errors_say_what_was_expected_and_what_came(error, native):
    _, kind, message, call = error
    with pytest.raises(kind, match=message):
        call(native)


@every_op
def test_threads_do_not_matter(op: Op):
    from pyramid.ops import _library

    if not _library.load():
        pytest.skip("the extension is not built")
    device, before = torch.device("cpu"), torch.get_num_threads()
    args = (op.large or op.samples[2]).make(torch.float32, device)
    if op.large is None:
        args = tuple(torch.cat([a] * 40) if isinstance(a, Tensor) else a for a in args)
    try:
        torch.set_num_threads(1)
        alone = outputs(op.native(*args))
        torch.set_num_threads(2)
        together = outputs(op.native(*args))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
