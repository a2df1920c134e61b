"""The ops that are plain PyTorch so far, against definitions that are slower and plainer still."""

from __future__ import annotations

import pytest
import torch

from pyramid import ops

# -- code_logsumexp ----------------------------------------------------------------------------------------------------


def test_code_logsumexp_is_its_definition():
    z = torch.randn(3, 4, 7, dtype=torch.float64, requires_grad=True)
    codebook = torch.randn(29, 7, dtype=torch.float64, requires_grad=True)
    expected = torch.logsumexp(-(z[..., None, :] - codebook).square().sum(-1) / 0.3, -1)
    torch.testing.assert_close(ops.code_logsumexp(z, codebook, 0.3), expected)
    assert torch.autograd.gradcheck(lambda z, c: ops.code_logsumexp(z, c, 0.3), (z, codebook))


def test_code_logsumexp_far_from_zero():
    z, codebook = torch.randn(5, 7) + 500, torch.randn(29, 7) + 500
    expected = torch.logsumexp(-(z.double()[:, None] - codebook.double()).square().sum(-1), -1)
    torch.testing.assert_close(ops.code_logsumexp(z, codebook, 1.0).double(), expected, rtol=1e-5, atol=1e-5)


def test_code_logsumexp_errors():
    with pytest.raises(ValueError, match=r"expected z .* got \(2, 3\) and \(4, 5\)"):
        ops.code_logsumexp(torch.zeros(2, 3), torch.zeros(4, 5), 1.0)
    with pytest.raises(ValueError, match="tau > 0, got 0"):
        ops.code_logsumexp(torch.zeros(2, 3), torch.zeros(4, 3), 0)


# -- interval_attention ------------------------------------------------------------------------------------------------


def attention_by_loops(q, k, v, intervals, scale):
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)
    for batch in range(q.shape[0]):
        for head in range(q.shape[1]):
            group = head // (q.shape[1] // k.shape[1])
            for query in range(q.shape[2]):
                a, b, c, d = intervals[min(batch, intervals.shape[0] - 1), query].tolist()
                keys = sorted({*range(a, b), *range(c, d)})
                if keys:
                    weight = torch.softmax(k[batch, group, keys] @ q[batch, head, query] * scale, 0)
                    out[batch, head, query] = weight @ v[batch, group, keys]
    return out


def attention_inputs(dtype=torch.float64, batches=2):
    q = torch.randn(2, 4, 5, 6, dtype=dtype, requires_grad=True)
    k = torch.randn(2, 2, 9, 6, dtype=dtype, requires_grad=True)
    v = torch.randn(2, 2, 9, 3, dtype=dtype, requires_grad=True)
    ends = torch.randint(0, 10, (batches, 5, 2, 2)).sort(-1).values
    return q, k, v, ends.flatten(2)


@pytest.mark.parametrize("batches", [1, 2])
def test_interval_attention_is_its_definition(batches):
    q, k, v, intervals = attention_inputs(batches=batches)
    out = ops.interval_attention(q, k, v, intervals, scale=0.7)
    torch.testing.assert_close(out, attention_by_loops(q, k, v, intervals, 0.7))
    assert torch.autograd.gradcheck(lambda *a: ops.interval_attention(*a, intervals), (q, k, v))


def test_interval_attention_covers_causal():
    q, k, v = (torch.randn(1, 2, 7, 4) for _ in range(3))
    row = torch.arange(7)
    intervals = torch.stack([row * 0, row + 1, row * 0, row * 0], -1)[None]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ops.interval_attention(q, k, v, intervals), expected)


def test_interval_attention_that_sees_nothing_gives_zeros():
    q, k, v, intervals = attention_inputs()
    intervals = intervals.clone()
    intervals[0, 2] = torch.tensor([4, 4, 0, 0])
    out = ops.interval_attention(q, k, v, intervals)
    assert not out[0, :, 2].any()
    out.sum().backward()
    assert not q.grad[0, :, 2].any() and k.grad.isfinite().all() and v.grad.isfinite().all()
    assert ops.interval_attention(q, k[:, :, :0], v[:, :, :0], intervals * 0).shape == (2, 4, 5, 3)


@pytest.mark.parametrize("bad", [[3, 2, 0, 0], [0, 10, 0, 0], [0, 1, -1, 2], [0, 1, 5, 4]])
def test_interval_attention_names_the_bad_interval(bad):
    q, k, v, intervals = attention_inputs()
    intervals = intervals.clone()
    intervals[1, 3] = torch.tensor(bad)
    with pytest.raises(ValueError, match=r"0 <= a <= b <= 9 .* got \[.*\] for query 3 of batch 1"):
        ops.interval_attention(q, k, v, intervals)


def test_interval_attention_errors():
    q, k, v, intervals = attention_inputs()
    with pytest.raises(ValueError, match="H a multiple of Hkv"):
        ops.interval_attention(q[:, :3], k, v, intervals)
    with pytest.raises(ValueError, match=r"\(2 or 1, 5, 4\), got \(2, 4, 4\)"):
        ops.interval_attention(q, k, v, intervals[:, :4])
    with pytest.raises(TypeError, match="integers, got torch.float32"):
        ops.interval_attention(q, k, v, intervals.float())
