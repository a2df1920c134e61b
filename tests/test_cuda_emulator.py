"""The emulator itself: layouts against their definition, and mistakes that it must catch."""

from __future__ import annotations

import ctypes
import re

import pytest
import torch
from cuda_emulator.library import compiler, self_test

pytestmark = pytest.mark.skipif(compiler() is None, reason="the emulator needs a C++ compiler, none found")
DTYPES = (torch.bfloat16, torch.float16)


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mma_and_ldmatrix_are_a_product(dtype, by_rows):
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    d = torch.full((16, 8), torch.nan)
    kept = b.contiguous() if by_rows else b.T.contiguous()
    assert self_test().emulated_product(pointer(a), pointer(kept), pointer(d), dtype == torch.float16, by_rows) == 0
    torch.testing.assert_close(d, (a.double() @ b.double()).float(), rtol=1e-6, atol=1e-6)


def test_block_sums():
    x, sums = torch.randn(11, 96), torch.full((11,), torch.nan)
    assert self_test().emulated_block_sums(pointer(x), pointer(sums), 11) == 0
    torch.testing.assert_close(sums, x.sum(1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_conversions_are_those_of_torch(dtype):
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    edges = torch.tensor([65519.0, 65520.0, -65520.0, 1e-8, 2.9802322387695312e-08, 2.98e-8, 3e38, 3.4e38, -0.0])
    between = every * 1.0009765
    x = torch.cat([every, between, edges, torch.randn(1000) * torch.randn(1000).mul(8).exp()])
    narrowed, widened = torch.zeros(len(x), dtype=dtype), torch.zeros(len(x))
    half = dtype == torch.float16
    assert self_test().emulated_convert(pointer(x), pointer(narrowed), pointer(widened), len(x), half) == 0
    torch.testing.assert_close(narrowed, x.to(dtype), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(widened, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("divergent_barrier", "waits at __syncthreads for threads that never come"),
        ("missing_lane", "__syncwarp"),
        ("other_barrier", "is at the __syncthreads of line .* but thread .* at that of line"),
        ("overrun", "a write 0 bytes behind dynamic shared memory"),
        ("early_return", "__shfl_xor_sync"),
    ],
)
def test_mistakes_end_the_launch(mistake, message):
    order = ["no_barrier", "no_wait", "divergent_barrier", "missing_lane", "other_barrier", "overrun", "early_return"]
    out, x = torch.zeros(64), torch.randn(64)
    assert self_test().emulated_mistake(pointer(out), pointer(x), order.index(mistake)) == 719
    text = self_test().emulated_message().decode()
    assert re.search(message, text), text


@pytest.mark.parametrize("mistake", [0, 1], ids=["no barrier", "no wait"])
def test_a_race_shows_as_nan(mistake):
    out, x = torch.zeros(64), torch.randn(64)
    assert self_test().emulated_mistake(pointer(out), pointer(x), mistake) == 0
    assert out.isnan().any()
