"""What is special to code_logsumexp and code_cross_entropy: definitions, sizes at random, SPAE's draw of targets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_no_worse

from pyramid import ops
from pyramid.ops import _library, reference

native_only = pytest.mark.skipif(not _library.load(), reason="the extension is not built")


@pytest.fixture(params=["native", "reference"])
def either(request: pytest.FixtureRequest):
    if request.param == "native" and not _library.load():
        pytest.skip("the extension is not built")
    with ops.backend(request.param):
        yield request.param


def test_it_is_its_definition(either):
    z = torch.randn(3, 4, 7, dtype=torch.float64, requires_grad=True)
    codebook = torch.randn(29, 7, dtype=torch.float64, requires_grad=True)
    expected = torch.logsumexp(-(z[..., None, :] - codebook).square().sum(-1) / 0.3, -1)
    torch.testing.assert_close(ops.code_logsumexp(z, codebook, 0.3), expected)
    assert torch.autograd.gradcheck(lambda z, c: ops.code_logsumexp(z, c, 0.3), (z, codebook))
    assert torch.autograd.gradgradcheck(lambda z, c: ops.code_logsumexp(z, c, 0.3), (z[0, :2], codebook[:5]))


@native_only
@settings(max_examples=50, deadline=None)
@given(
    num_rows=st.integers(0, 150),
    num_codes=st.integers(1, 250),
    dim=st.integers(1, 60),
    tau=st.sampled_from([0.1, 1.0, 30.0]),
    shift=st.sampled_from([0.0, 5.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    transposed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_size_stride_and_dtype(num_rows, num_codes, dim, tau, shift, dtype, transposed, seed):
    torch.manual_seed(seed)

    def rows(count):
        x = (torch.randn(dim, count).T if transposed else torch.randn(count, dim)) + shift
        return x.to(dtype)

    z, codebook, up = rows(num_rows), rows(num_codes), torch.randn(num_rows)

    def forward_backward(function, kind):
        leaves = [x.detach().to(kind).requires_grad_() for x in (z, codebook)]
        out = function(*leaves, tau)
        return out, *torch.autograd.grad(out, leaves, up.to(out.dtype))

    got = forward_backward(ops.code_logsumexp, dtype)
    plain = forward_backward(reference.code_logsumexp, dtype)
    truth = forward_backward(reference.code_logsumexp, torch.float64)
    # What float32 scores are off by: their size in units of tau. Plain is off as much, but may be lucky.
    luck = 3e-7 * (1 + (dim + 2 * num_codes**0.5) / tau)
    for name, g, p, t, size in zip(
        ("logsumexp", "grad z", "grad codebook"), got, plain, truth, (1.0, *sizes(z, codebook, up, tau)), strict=True
    ):
        floor = luck if name == "logsumexp" else max(luck * size, torch.finfo(dtype).eps)
        assert_no_worse(g, p, t.detach(), name, floor=floor)


def sizes(z, codebook, up, tau):
    """Of the two gradients: how much larger the terms are that are summed than what they come to, at least 1."""
    z, codebook, up = z.double(), codebook.double(), up.double()
    away = z[:, None] - codebook
    terms = up[:, None, None] * torch.softmax(-away.square().sum(-1) / tau, -1)[..., None] * away
    return [
        max(1.0, (terms.abs().sum(axis).max() / terms.sum(axis).abs().max()).item()) if terms.numel() else 1.0
        for axis in (1, 0)
    ]


def test_far_from_zero(either):
    z, codebook = torch.randn(5, 7) + 500, torch.randn(29, 7) + 500
    expected = torch.logsumexp(-(z.double()[:, None] - codebook.double()).square().sum(-1), -1)
    torch.testing.assert_close(ops.code_logsumexp(z, codebook, 1.0).double(), expected, rtol=1e-5, atol=1e-5)


@native_only
def test_no_matrix_is_formed():
    """8,000 rows against 8,000 codes would be 256 MB; what is kept is a gradient's worth of rows."""
    psutil = pytest.importorskip("psutil")
    z, codebook = torch.randn(8000, 4, requires_grad=True), torch.randn(8000, 4)
    ops.code_logsumexp(z[:10], codebook, 1.0)
    process = psutil.Process()
    before = process.memory_info().rss
    peak = before
    out = ops.code_logsumexp(z, codebook, 1.0)
    peak = max(peak, process.memory_info().rss)
    out.sum().backward()
    peak = max(peak, process.memory_info().rss)
    assert peak - before < 64 * 2**20


@native_only
def test_autocast_does_not_matter():
    z, codebook = torch.randn(40, 9), torch.randn(70, 9)
    expected = ops.code_logsumexp(z, codebook, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.code_logsumexp(z, codebook, 1.0), expected)


def test_nan_and_infinity_stay_in_their_row(either):
    z, codebook = torch.randn(60, 8), torch.randn(130, 8)
    expected = ops.code_logsumexp(z, codebook, 1.0)
    z[3, 2] = torch.nan
    got = ops.code_logsumexp(z, codebook, 1.0)
    assert got.isnan().nonzero().flatten().tolist() == [3]
    others = torch.arange(60) != 3
    assert torch.equal(got[others], expected[others])


# -- code_cross_entropy ------------------------------------------------------------------------------------------------


def cross_entropy_by_listing(z, codebook, scores, threshold, tau):
    """The mean over the targets of -log softmax, target by target."""
    logits = -(z[..., None, :] - codebook).square().sum(-1) / tau
    nll = -torch.log_softmax(logits, -1)
    loss = torch.zeros(z.shape[:-1], dtype=z.dtype)
    for clip, row in enumerate(scores):
        targets = (row >= threshold).nonzero().flatten()
        if len(targets):
            loss[clip] = nll[clip][..., targets].mean(-1)
    return loss


def test_cross_entropy_is_the_mean_over_targets(either):
    z = torch.randn(3, 4, 2, 7, dtype=torch.float64, requires_grad=True)
    codebook = torch.randn(29, 7, dtype=torch.float64, requires_grad=True)
    scores = torch.rand(3, 29)
    scores[1] = 0  # a clip without targets
    args = (scores, 0.7, 0.9)
    loss = ops.code_cross_entropy(z, codebook, *args)
    torch.testing.assert_close(loss, cross_entropy_by_listing(z, codebook, *args))
    assert loss.shape == (3, 4, 2) and not loss[1].any() and loss[0].all()
    assert torch.autograd.gradcheck(lambda z, c: ops.code_cross_entropy(z, c, *args), (z, codebook))


def test_cross_entropy_is_the_expectation_of_a_drawn_target(either):
    """SPAE draws one target; over many draws its loss is ours."""
    z, codebook, scores = torch.randn(1, 7), torch.randn(40, 7), torch.rand(1, 40)
    nll = -torch.log_softmax(-(z - codebook).square().sum(-1), -1)
    drawn = torch.multinomial((scores[0] >= 0.5).float(), 20000, replacement=True)
    loss = ops.code_cross_entropy(z, codebook, scores, 0.5, 1.0)[0]
    assert abs(nll[drawn].mean() - loss) < 5 * nll[drawn].std() / 20000**0.5


def test_cross_entropy_far_from_zero_does_not_cancel(either):
    z, codebook, scores = torch.randn(2, 5, 8) + 300, torch.randn(50, 8) + 300, torch.rand(2, 50)
    wide = cross_entropy_by_listing(z.double(), codebook.double(), scores, 0.5, 1.0)
    torch.testing.assert_close(ops.code_cross_entropy(z, codebook, scores, 0.5, 1.0).double(), wide, rtol=1e-5, atol=0)


def test_cross_entropy_of_one_target_pulls_to_it():
    z, codebook, scores = torch.randn(1, 1, 4, requires_grad=True), torch.randn(6, 4), torch.zeros(1, 6)
    scores[0, 2] = 1
    optimizer = torch.optim.SGD([z], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        ops.code_cross_entropy(z, codebook, scores, 0.5, 0.5).sum().backward()
        optimizer.step()
    assert ops.nearest_code(z.detach(), codebook).ids.item() == 2


def test_cross_entropy_errors():
    z, codebook = torch.zeros(2, 3, 4), torch.zeros(5, 4)
    with pytest.raises(ValueError, match=r"scores \(B, K\) = \(2, 5\), got \(2, 3, 4\) and \(3, 5\)"):
        ops.code_cross_entropy(z, codebook, torch.zeros(3, 5), 0.5, 1.0)
    with pytest.raises(ValueError, match="code_cross_entropy: expected tau > 0, got -1"):
        ops.code_cross_entropy(z, codebook, torch.zeros(2, 5), 0.5, -1)
    with pytest.raises(TypeError, match="code_cross_entropy: expected z and codebook of one dtype"):
        ops.code_cross_entropy(z.double(), codebook, torch.zeros(2, 5), 0.5, 1.0)
