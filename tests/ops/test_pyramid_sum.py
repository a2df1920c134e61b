"""What is special to pyramid_sum: it is the sum of the resampled levels, to the bit, and a prefix is a pyramid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyramid import ops
from pyramid.ops import _library

GRIDS = [(1, 1, 1), (2, 2, 3), (4, 4, 6)]
grids = st.tuples(*(st.integers(1, 9) for _ in range(3)))


@pytest.fixture(params=["reference", "native"])
def backend(request):
    if request.param == "native" and not _library.load():
        pytest.skip("the extension is not built")
    with ops.backend(request.param):
        yield request.param


def test_of_a_prefix(backend):
    codes = [torch.randn(2, 5, *grid) for grid in GRIDS]
    for k in (1, 2, 3):
        expected = sum(ops.level_resample(code, GRIDS[-1]) for code in codes[:k])
        assert torch.equal(ops.pyramid_sum(codes, GRIDS, k), expected)
    assert torch.equal(ops.pyramid_sum(codes[:2], GRIDS, 2), ops.pyramid_sum(codes, GRIDS, 2))


@pytest.mark.skipif(not _library.load(), reason="the extension is not built")
@settings(max_examples=60, deadline=None)
@given(
    levels=st.lists(grids, min_size=1, max_size=5),
    size=grids,
    channels=st.integers(1, 70),
    last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_is_the_sum_of_the_levels_to_the_bit(levels, size, channels, last, seed):
    """Also of levels that lie differently in memory, and are larger than the result."""
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.randn(2, channels, *grid, generator=generator) for grid in levels]
    codes[0] = codes[0].movedim(1, -1).contiguous().movedim(-1, 1)
    if last:
        codes[-1] = codes[-1].movedim(1, -1).contiguous().movedim(-1, 1)
    expected = ops.level_resample(codes[0], size)
    for code in codes[1:]:
        expected = expected + ops.level_resample(code, size)
    assert torch.equal(ops.pyramid_sum(codes, [*levels, size], len(levels)), expected)


def test_sums_in_float32():
    """1 + 2^-8 + 2^-8 in bfloat16: added one by one, both halves of a unit would be lost."""
    codes = [torch.full((1, 1, 1, 1, 1), value).bfloat16() for value in (1.0, 2.0**-8, 2.0**-8)]
    assert ops.pyramid_sum(codes, [(1, 1, 1)] * 3, 3).item() == 1 + 2.0**-7


def test_second_derivatives(backend):
    codes = [torch.randn(1, 2, *grid, dtype=torch.float64, requires_grad=True) for grid in GRIDS[:2]]
    assert torch.autograd.gradgradcheck(
        lambda *codes: ops.pyramid_sum([code.square() for code in codes], [*GRIDS[:2], (1, 3, 2)], 2), codes
    )
