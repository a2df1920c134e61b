"""What is special to bit_quantize: the ids are the bits, the entropy is that of all 2^d codes, nothing overflows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyramid import ops
from pyramid.ops import _library
from pyramid.ops.bit_quantize import MIN_TEMPERATURE

pytestmark = pytest.mark.skipif(not _library.load(), reason="the extension is not built")


@settings(max_examples=60, deadline=None)
@given(num_rows=st.integers(0, 200), num_bits=st.integers(1, 62), seed=st.integers(0, 2**31))
def test_ids_are_the_bits_little_endian(num_rows, num_bits, seed):
    x = torch.randn(num_rows, num_bits, generator=torch.Generator().manual_seed(seed))
    codes, ids, _, _ = ops.bit_quantize(x, 1.0)
    unpacked = (ids[:, None] >> torch.arange(num_bits)) & 1
    assert torch.equal(unpacked.float() * 2 - 1, codes)
    assert torch.equal(ops.bit_quantize(codes, 1.0).ids, ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_zero_is_minus_one(dtype, instruction_set):
    codes, ids, _, _ = ops.bit_quantize(torch.tensor([0.0, -0.0, 1e-7, torch.nan], dtype=dtype), 1.0)
    assert codes.tolist() == [-1, -1, 1, -1] and ids == 4


def test_entropy_is_that_of_all_codes():
    """By listing all 2^d codes c with logits 2 x . c / temperature."""
    x, temperature = torch.randn(20, 6, dtype=torch.float64), 0.9
    codes = ((torch.arange(64)[:, None] >> torch.arange(6)) & 1).double() * 2 - 1
    log_p = torch.log_softmax(2 * x @ codes.T / temperature, -1)
    expected = -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(ops.bit_quantize(x, temperature).entropy, expected)
    assert ops.bit_quantize(torch.zeros(6), 1.0).entropy.item() == pytest.approx(6 * math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [6e4, -6e4, torch.inf, -torch.inf])
def test_nothing_overflows(dtype, value, instruction_set):
    x = torch.tensor([value], dtype=dtype, requires_grad=True)
    quantized = ops.bit_quantize(x, 0.01)
    quantized.entropy.backward()
    assert quantized.entropy.item() == pytest.approx(0, abs=1e-30) and x.grad.item() == pytest.approx(0, abs=1e-20)
    assert quantized.commitment.item() == pytest.approx((abs(value) - 1) ** 2, rel=1e-2)


def test_nan_stays_visible(instruction_set):
    x = torch.zeros(3, 20)
    x[1, 7] = torch.nan
    _, ids, entropy, commitment = ops.bit_quantize(x, 1.0)
    assert entropy.isnan().tolist() == [False, True, False] == commitment.isnan().tolist() and not ids.any()


def test_codes_pass_the_gradient_straight_through():
    x = torch.randn(5, 7, requires_grad=True)
    weight = torch.randn(5, 7)
    (ops.bit_quantize(x, 1.0).codes * weight).sum().backward()
    assert torch.equal(x.grad, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_nan_meets_only_the_gradients_that_are_there(dtype, instruction_set):
    x = torch.tensor([[torch.nan, 1.0]], dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.bit_quantize(x, 1.0).codes.sum(), x)
    assert grad.tolist() == [[1, 1]]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_temperatures_that_overflow_are_refused(backend):
    with ops.backend(backend):
        with pytest.raises(ValueError, match="expected temperature >= 1.2e-38, got 1e-40"):
            ops.bit_quantize(torch.zeros(3), 1e-40)
        assert ops.bit_quantize(torch.zeros(3), MIN_TEMPERATURE).entropy.item() == pytest.approx(3 * math.log(2))


def test_gradient_of_the_gradient():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: ops.bit_quantize(x, 0.7)[2:], (x,))
