"""What is special to nearest_code: ties, near ties, huge and tiny and missing numbers, sizes at random."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_nearest

from pyramid import ops
from pyramid.ops import _library, reference

pytestmark = pytest.mark.skipif(not _library.load(), reason="the extension is not built")


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(0, 70),
    num_codes=st.integers(1, 600),
    dim=st.integers(1, 40),
    exponent=st.integers(-30, 30),
    shift=st.sampled_from([0.0, 1.0, 1000.0]),
    seed=st.integers(0, 2**31),
)
def test_any_size_and_scale(num_rows, num_codes, dim, exponent, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    z = (torch.randn(num_rows, dim, generator=generator) + shift) * 10.0**exponent
    codebook = (torch.randn(num_codes, dim, generator=generator) + shift) * 10.0**exponent
    assert_nearest(*ops.nearest_code(z, codebook), z, codebook)


@settings(max_examples=60, deadline=None)
@given(num_rows=st.integers(1, 40), num_codes=st.integers(1, 500), dim=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_ties_go_to_the_lowest_id(num_rows, num_codes, dim, seed):
    """On a small integer grid distances are exact and nearly every row ties: the ids themselves must agree."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(-2, 3, (num_rows, dim), generator=generator).float()
    codebook = torch.randint(-2, 3, (num_codes, dim), generator=generator).float()
    distances = (z[:, None] - codebook).square().sum(-1)
    first = (distances == distances.amin(1, keepdim=True)).int().argmax(1)
    assert torch.equal(ops.nearest_code(z, codebook).ids, first)


def test_ties_in_every_instruction_set(instruction_set):
    codebook = torch.randn(50, 24).repeat(20, 1)
    z = codebook[torch.randint(1000, (300,))]
    ids, distance = ops.nearest_code(z, codebook)
    assert ids.max() < 50 and torch.equal(codebook[ids], z) and not distance.any()


def test_near_ties_are_told_apart(instruction_set):
    """Codes that differ in the last bit of one coordinate, far from zero: float32 scores cannot tell them apart."""
    base = torch.full((64, 16), 1000.0)
    codebook = base.clone()
    for k in range(64):
        codebook[k, 3] = torch.nextafter(codebook[k, 3], torch.tensor(torch.inf)) if k % 2 else codebook[k, 3]
        codebook[k, 5] += (k // 2) * 2.0**-13
    z = codebook.clone()
    ids, distance = ops.nearest_code(z, codebook)
    assert torch.equal(ids, torch.arange(64)) and not distance.any()


def test_zero_distance_is_zero_however_large_the_numbers():
    z = torch.randn(100, 32) * 1e12
    ids, distance = ops.nearest_code(z, z.clone())
    assert torch.equal(ids, torch.arange(100)) and not distance.any()


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e18, 1e25, 3e38])
def test_at_the_ends_of_float32(scale, instruction_set):
    z = (torch.rand(40, 6) - 0.5) * scale
    codebook = (torch.rand(300, 6) - 0.5) * scale
    ids, _ = ops.nearest_code(z, codebook)
    assert torch.equal(ids, reference.nearest_code(z, codebook)[0])


def test_nan_loses_and_infinity_stays_in_its_row(instruction_set):
    z = torch.randn(30, 8)
    codebook = torch.randn(400, 8)
    expected = ops.nearest_code(z, codebook)
    z_bad, bad_codes = z.clone(), torch.cat([torch.full((1, 8), torch.nan), codebook, torch.full((1, 8), torch.inf)])
    z_bad[3, 2], z_bad[7] = torch.nan, torch.inf
    ids, distance = ops.nearest_code(z_bad, bad_codes)
    good = [row for row in range(30) if row not in (3, 7)]
    assert torch.equal(ids[good], expected.ids[good] + 1) and torch.equal(distance[good], expected.distance[good])
    assert ids[3] == 0 and distance[3].isnan()
    assert torch.equal(ids, reference.nearest_code(z_bad, bad_codes)[0])


def test_other_rows_do_not_matter():
    z, codebook = torch.randn(333, 20), torch.randn(700, 20)
    together = ops.nearest_code(z, codebook)
    for row in (0, 1, 17, 332):
        alone = ops.nearest_code(z[row : row + 1], codebook)
        assert alone.ids == together.ids[row] and alone.distance == together.distance[row]


def test_half_precision_is_widened_not_rounded():
    z, codebook = torch.randn(50, 12).bfloat16(), torch.randn(900, 12).bfloat16()
    narrow, wide = ops.nearest_code(z, codebook), ops.nearest_code(z.float(), codebook.float())
    assert torch.equal(narrow.ids, wide.ids) and torch.equal(narrow.distance, wide.distance)


def test_gradient_of_the_gradient():
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    codebook = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda z, c: ops.nearest_code(z, c).distance, (z, codebook))
