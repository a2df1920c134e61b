"""What is special to level_resample: it is its definition, up then down is the identity, and memory order stays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyramid import ops
from pyramid.ops import _library

grids = st.tuples(*(st.integers(1, 9) for _ in range(3)))


def resample_by_loops(x, size):
    out = torch.zeros(*x.shape[:2], *size, dtype=x.dtype)
    for cell in torch.cartesian_prod(*map(torch.arange, size)).tolist():
        window = [slice(None), slice(None)]
        for i, new, old in zip(cell, size, x.shape[2:], strict=True):
            if new >= old:
                window.append(slice(i * old // new, i * old // new + 1))
            else:
                window.append(slice(i * old // new, -(-(i + 1) * old // new)))
        out[(slice(None), slice(None), *cell)] = x[tuple(window)].mean((2, 3, 4))
    return out


@pytest.fixture(params=["reference", "native"])
def backend(request):
    if request.param == "native" and not _library.load():
        pytest.skip("the extension is not built")
    with ops.backend(request.param):
        yield request.param


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 4), (4, 6, 5), (3, 2, 9), (8, 12, 10), (7, 5, 3)])
def test_is_its_definition(size, backend):
    x = torch.randn(2, 3, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ops.level_resample(x, size), resample_by_loops(x, size))
    assert torch.autograd.gradcheck(lambda x: ops.level_resample(x, size), (x,), fast_mode=True)


def test_up_then_down_is_the_identity(backend):
    x = torch.randn(1, 2, 2, 3, 4).bfloat16()
    assert torch.equal(ops.level_resample(ops.level_resample(x, (4, 6, 8)), (2, 3, 4)), x)


@pytest.mark.skipif(not _library.load(), reason="the extension is not built")
@settings(max_examples=60, deadline=None)
@given(before=grids, after=grids, channels=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_both_orders_of_memory_give_the_same_bits(before, after, channels, seed):
    planar = torch.randn(2, channels, *before, generator=torch.Generator().manual_seed(seed))
    last = planar.movedim(1, -1).contiguous().movedim(-1, 1)
    out, out_last = ops.level_resample(planar, after), ops.level_resample(last, after)
    assert torch.equal(out, out_last) and out_last.movedim(1, -1).is_contiguous()
    torch.testing.assert_close(out, resample_by_loops(planar.double(), after).float())


@pytest.mark.skipif(not _library.load(), reason="the extension is not built")
@settings(max_examples=60, deadline=None)
@given(before=grids, after=grids, seed=st.integers(0, 2**31))
def test_backward_is_the_adjoint(before, after, seed):
    """<A x, y> = <x, A' y>, for grids of every ratio."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 2, *before, generator=generator, dtype=torch.float64)
    y = torch.randn(1, 2, *after, generator=generator, dtype=torch.float64)
    back = torch.ops.pyramid.level_resample_backward(y, list(before))
    torch.testing.assert_close((ops.level_resample(x, after) * y).sum(), (x * back).sum())


def test_a_gradient_that_is_one_number_spread_out(backend):
    x = torch.randn(2, 3, 4, 6, 5, requires_grad=True)
    ops.level_resample(x, (2, 3, 5)).sum().backward()  # grad comes with strides of zero
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / 4))


def test_second_derivatives(backend):
    x = torch.randn(1, 2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: ops.level_resample(x.square(), (2, 5, 1)), (x,))
