"""nearest_code and code_logsumexp on CUDA, in the emulator: near ties that conspire against the bound, sizes at random.

The emulator adds as coarsely as any tensor core is known to, so a bound that is too small shows here.
"""

from __future__ import annotations

import pytest
import torch
from cuda_emulator.library import compiler, emulated_ops
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_nearest, assert_no_worse, exact_distance
from torch import Tensor

from pyramid.ops import reference

pytestmark = pytest.mark.skipif(compiler() is None, reason="the emulator needs a C++ compiler, none found")

FLOATS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
HALF_STEP = 2.0**-8  # of bfloat16 in [1, 2)
SHORT = 2.0**-14  # of half a step


def nearest(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    distance, ids = emulated_ops().nearest_code.default(z, codebook)
    return ids, distance


@settings(max_examples=25, deadline=None)
@given(
    num_rows=st.integers(1, 140),
    num_codes=st.integers(1, 400),
    dim=st.integers(1, 140),
    exponent=st.sampled_from([-30, -6, 0, 6, 30]),
    shift=st.sampled_from([0.0, 1.0, 1000.0]),
    spread=st.sampled_from([0.0, 4.0]),
    dtype=st.sampled_from(list(FLOATS)),
    seed=st.integers(0, 2**31),
)
def test_nearest_code_of_any_size_scale_and_spread(num_rows, num_codes, dim, exponent, shift, spread, dtype, seed):
    torch.manual_seed(seed)
    exponent = exponent if dtype != torch.float16 else 0
    norms = 10.0 ** (spread * (torch.rand(num_codes, 1) - 0.5) + exponent)
    codebook = ((torch.randn(num_codes, dim) + shift) * norms).to(dtype)
    z = ((torch.randn(num_rows, dim) + shift) * 10.0**exponent).to(dtype)
    assert_nearest(*nearest(z, codebook), z, codebook)


def test_rounding_of_z_that_points_at_the_wrong_code():
    """z is rounded by half a step, up or down, along the difference of two codes: s is off by |z' - a| |e'|.

    The codes are +-w with z . w about 0, and +-v, a little longer, which keep the mean at 0 and fill the buckets.
    """
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(16)  # + is rounded down, - up
    z = 1 + HALF_STEP * (1 - sign * SHORT)
    z[0], z[2] = 1.5, 1.5 - 2 * HALF_STEP  # exact in bfloat16: they tip the truth towards +w
    w, v = sign, 1.05 * torch.tensor([1.0, -1.0, 1.0, -1.0]).repeat(16)
    v = v.bfloat16().float()
    codebook = torch.stack([w, *[v, -v] * 15, v, -w, *[-v, v] * 15, -v])
    assert codebook.sum(0).abs().max() == 0
    a = z.bfloat16().float()
    exact, coarse = (((x - codebook[[0, 32]]).double().square().sum(-1) / 2).diff().item() for x in (z, a))
    reach = (z - a).norm() * w.norm()  # of the rounding: the two scores may be off by twice this
    assert exact > 0 and coarse < -1.8 * reach
    ids, distance = nearest(z[None], codebook)
    assert ids.item() == 0 and torch.allclose(distance, exact_distance(z, codebook, ids).float())


def test_rounding_of_codes_that_makes_the_wrong_one_look_nearer():
    """One code is rounded down in every coordinate, the other up, and z points along the difference: |a| |e' - b|."""
    dim = 64
    low, high = torch.full((dim,), 1 + HALF_STEP * (1 - SHORT)), torch.full((dim,), 1 + HALF_STEP * (1 + SHORT))
    low[0] = 1 + 4 * HALF_STEP  # exact, and enough that the one that is rounded down is the nearer one
    high[0] = 1.0 + 2 * HALF_STEP
    z = torch.full((1, dim), 4.0)
    codebook = torch.stack([low, -low] * 16 + [high, -high] * 16)
    assert codebook.sum(0).abs().max() == 0
    exact = (z - codebook[[0, 32]]).double().square().sum(-1).diff().item()
    coarse = (z - codebook[[0, 32]].bfloat16()).double().square().sum(-1).diff().item()
    assert exact > 0 > coarse
    assert nearest(z, codebook)[0].item() == 0


def test_what_the_sum_of_the_tensor_cores_loses():
    """Codes that are each other's permutations, in numbers that bfloat16 holds, all equally far from a constant z (in
    float64 exactly): rounding the vectors loses nothing, but the sums depend on the order. The lowest id must win."""
    torch.manual_seed(0)
    values = torch.cat([torch.randint(128, 256, (412,)) * 2.0**-11, torch.randint(128, 256, (100,))])
    codes = torch.stack([values[torch.randperm(512)] for _ in range(128)])
    codebook = torch.stack([codes, -codes], dim=1).reshape(256, 512)
    assert codebook.sum(0).abs().max() == 0
    z = torch.tensor([1024.0, 768.0, 512.0])[:, None].expand(3, 512)
    ids, _ = nearest(z, codebook)
    assert ids.tolist() == [0, 0, 0]


@settings(max_examples=15, deadline=None)
@given(num_rows=st.integers(1, 40), num_codes=st.integers(1, 500), dim=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_ties_go_to_the_lowest_id(num_rows, num_codes, dim, seed):
    """On a small integer grid distances are exact and nearly every row ties: the ids themselves must agree."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(-2, 3, (num_rows, dim), generator=generator).float()
    codebook = torch.randint(-2, 3, (num_codes, dim), generator=generator).float()
    distances = (z[:, None] - codebook).square().sum(-1)
    first = (distances == distances.amin(1, keepdim=True)).int().argmax(1)
    assert torch.equal(nearest(z, codebook)[0], first)


def test_near_ties_far_from_zero_are_told_apart():
    """Codes that differ in the last bit of a coordinate: neither bfloat16 nor float32 scores can tell them apart."""
    codebook = torch.full((64, 16), 1000.0)
    codebook[1::2, 3] = torch.nextafter(codebook[1::2, 3], torch.tensor(torch.inf))
    codebook[:, 5] += torch.arange(64) // 2 * 2.0**-13
    ids, distance = nearest(codebook.clone(), codebook)
    assert torch.equal(ids, torch.arange(64)) and not distance.any()


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e18, 1e25, 3e38])
def test_at_the_ends_of_float32(scale):
    torch.manual_seed(0)
    z, codebook = (torch.rand(40, 6) - 0.5) * scale, (torch.rand(300, 6) - 0.5) * scale
    assert torch.equal(nearest(z, codebook)[0], reference.nearest_code(z, codebook)[0])


def test_nan_loses_and_infinity_stays_in_its_row():
    z, codebook = torch.randn(30, 8), torch.randn(400, 8)
    z[3, 2], z[7] = torch.nan, torch.inf
    for codes in (codebook, torch.cat([torch.full((1, 8), torch.nan), codebook, torch.full((1, 8), torch.inf)])):
        ids, distance = nearest(z, codes)
        assert torch.equal(ids, reference.nearest_code(z, codes)[0])
        assert ids[3] == 0 and distance[3].isnan()


# -- code_logsumexp ----------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    num_rows=st.integers(1, 140),
    num_codes=st.integers(1, 200),
    dim=st.sampled_from([1, 31, 33, 64, 100, 129, 256, 257, 530]),
    tau=st.sampled_from([0.1, 1.0, 30.0]),
    shift=st.sampled_from([0.0, 5.0]),
    dtype=st.sampled_from(list(FLOATS)),
    seed=st.integers(0, 2**31),
)
def test_code_logsumexp_of_any_size(num_rows, num_codes, dim, tau, shift, dtype, seed):
    torch.manual_seed(seed)
    z, codebook = (torch.randn(num_rows, dim) + shift).to(dtype), (torch.randn(num_codes, dim) + shift).to(dtype)
    grad = torch.randn(num_rows)
    scale = dim**0.5 * tau  # the scores differ by a few units however wide the vectors are

    def of(to, forward, backward):
        args = (z.to(to), codebook.to(to), scale)
        lse, pull = forward(*args)
        return lse, pull, backward(grad.to(lse.dtype), args[0], args[1], lse, scale)

    def plain(z, codebook, tau):
        return reference.code_logsumexp(z, codebook, tau), reference.mean_code(z, codebook, tau) - z.to(grad.dtype)

    def exact(z, codebook, tau):
        return reference.code_logsumexp(z, codebook, tau), reference.mean_code(z, codebook, tau) - z

    ours = emulated_ops()
    got = of(dtype, ours.code_logsumexp.default, ours.code_logsumexp_backward.default)
    near = of(dtype, plain, reference.code_logsumexp_backward)
    truth = of(torch.float64, exact, reference.code_logsumexp_backward)
    # What float32 scores are off by: their size in units of tau. Plain is off as much, but may be lucky.
    luck = 3e-7 * (1 + truth[0].abs().max().item())
    for name, g, p, t in zip(("logsumexp", "pull", "grad codebook"), got, near, truth, strict=True):
        assert_no_worse(g, p, t, name, floor=max(luck, torch.finfo(dtype).eps if name == "grad codebook" else 0))


def test_code_logsumexp_is_as_accurate_as_plain_over_many_codes():
    """32 runs of codes, each of several blocks: sums over blocks and runs lose no more than plain PyTorch's."""
    torch.manual_seed(0)
    z, codebook = torch.randn(20, 40), torch.randn(4500, 40)
    lse, pull = emulated_ops().code_logsumexp.default(z, codebook, 20.0)
    wide = (z.double(), codebook.double(), 20.0)
    truth, mean = reference.code_logsumexp(*wide), reference.mean_code(*wide)
    assert_no_worse(lse, reference.code_logsumexp(z, codebook, 20.0), truth, "logsumexp")
    assert_no_worse(pull, reference.mean_code(z, codebook, 20.0) - z, mean - wide[0], "pull")


def test_code_logsumexp_does_not_depend_on_the_order_of_blocks():
    torch.manual_seed(0)
    z, codebook, grad = torch.randn(150, 70), torch.randn(300, 70), torch.randn(150)
    ours = emulated_ops()  # runs blocks and threads in an order drawn by chance
    first, second = (ours.code_logsumexp.default(z, codebook, 3.0) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    args = (grad, z, codebook, first[0], 3.0)
    assert torch.equal(ours.code_logsumexp_backward.default(*args), ours.code_logsumexp_backward.default(*args))


def test_code_logsumexp_keeps_nan_in_its_row():
    torch.manual_seed(0)
    z, codebook = torch.randn(60, 8), torch.randn(130, 8)
    expected, _ = emulated_ops().code_logsumexp.default(z, codebook, 1.0)
    z[3, 2], z[9, 1] = torch.nan, torch.inf
    got, pull = emulated_ops().code_logsumexp.default(z, codebook, 1.0)
    bad = torch.zeros(60, dtype=torch.bool)
    bad[[3, 9]] = True
    assert torch.equal(got.isnan(), bad) and torch.equal(pull.isnan().any(1), bad)
    assert torch.equal(got[~bad], expected[~bad])


def test_code_logsumexp_backward_without_rows_is_zero():
    args = (torch.zeros(0), torch.zeros(0, 5), torch.randn(70, 5), torch.zeros(0), 1.0)
    assert torch.equal(emulated_ops().code_logsumexp_backward.default(*args), torch.zeros(70, 5))
