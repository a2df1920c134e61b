"""What is special to interval_attention on CUDA, on the host: any size and stride, slices of a cache, bad intervals."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator.library import compiler, emulated_ops
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_no_worse
from ops.case import plain_on_cuda
from ops.cases_interval_attention import INTERVAL_ATTENTION, intervals_of, rounded_backward

from pyramid.ops import reference

pytestmark = pytest.mark.skipif(compiler() is None, reason="the emulator needs a C++ compiler, none found")
HALVES = (torch.bfloat16, torch.float16)


def attend(q, k, v, intervals, scale):
    return emulated_ops().interval_attention(q, k, v, intervals, scale)


def attend_and_back(q, k, v, intervals, scale, up):
    out, logsumexp = attend(q, k, v, intervals, scale)
    grads = emulated_ops().interval_attention_backward(up, q, k, v, intervals, out, logsumexp, scale)
    return out, *grads


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 2),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    queries=st.sampled_from([0, 1, 3, 16, 17, 70, 130]),
    keys=st.integers(0, 300),
    dim=st.integers(1, 140),
    value_dim=st.integers(1, 140),
    dtype=st.sampled_from([torch.float32, *HALVES]),
    layout=st.permutations([0, 1, 2]),
    padding=st.sampled_from([0, 3, 8]),
    scale=st.sampled_from([None, 0.0, 1.0, 8.0, -0.5]),
    seed=st.integers(0, 2**31),
)
def test_any_size_stride_and_dtype(
    batch, kv_heads, group, queries, keys, dim, value_dim, dtype, layout, padding, scale, seed
):
    torch.manual_seed(seed)

    def heads(*shape):
        buffer = torch.randn([shape[axis] for axis in layout] + [shape[3] + padding]).to(dtype)
        return buffer.permute(*[layout.index(axis) for axis in range(3)], 3)[..., : shape[3]]

    q = heads(batch, kv_heads * group, queries, dim)
    k, v = heads(batch, kv_heads, keys, dim), heads(batch, kv_heads, keys, value_dim)
    intervals = intervals_of(batch, queries, keys, torch.device("cpu")) if batch else torch.zeros(1, queries, 4).long()
    by = dim**-0.5 if scale is None else scale
    up = torch.randn(batch, kv_heads * group, queries, value_dim).to(dtype)

    def forward_backward(function, kind):
        leaves = [x.detach().to(kind).requires_grad_() for x in (q, k, v)]
        out = function(*leaves, intervals, by)
        grads = torch.autograd.grad(out, leaves, up.to(kind), materialize_grads=True)
        return out, torch.cat([grad.flatten() for grad in grads])

    out, *grads = attend_and_back(q, k, v, intervals, by, up)
    got = out, torch.cat([grad.flatten() for grad in grads])
    plain = forward_backward(lambda *a: plain_on_cuda(INTERVAL_ATTENTION, dtype)(*a)[0], dtype)
    truth = forward_backward(reference.interval_attention, torch.float64)
    # Few numbers: plain may happen to be exact (one key: its softmax is 1), so one more rounding is allowed, of dtype
    # or of the largest score.
    lengths = [x.double().norm(dim=-1).max().item() if x.numel() else 0.0 for x in (q, k)]
    floor = max(4e-6, torch.finfo(dtype).eps, 1.2e-7 * abs(by) * lengths[0] * lengths[1])
    for name, g, p, t in zip(("out", "gradients"), got, plain, truth, strict=True):
        assert_no_worse(g, p.detach(), t.detach(), name, floor=floor)


@pytest.mark.parametrize("dim", [64, 136])
@pytest.mark.parametrize("dtype", HALVES)
def test_the_gradient_of_a_softmax_that_is_nearly_one_key(dtype, dim):
    """There dp - delta is small: a delta from the rounded output would be off by more than it."""
    q, scale = torch.randn(1, 2, 40, dim).to(dtype), 13 / dim  # the key of the query itself scores about 13
    k, v = q + 0.1 * torch.randn_like(q), torch.randn(1, 2, 40, dim).to(dtype)
    stop = torch.arange(1, 41)
    intervals = torch.stack([stop * 0, stop, stop * 0, stop * 0], -1)[None]
    args = (torch.randn(1, 2, 40, dim).to(dtype), q, k, v, intervals)
    out, logsumexp = attend(q, k, v, intervals, scale)
    got = emulated_ops().interval_attention_backward(*args, out, logsumexp, scale)
    plain = rounded_backward(*args, None, None, scale)
    wide = [a.double() if a.is_floating_point() else a for a in args]
    exact = reference.interval_logsumexp(*wide[1:3], intervals, scale)
    truth = reference.interval_attention_backward(*wide, out, exact, scale)
    for name, g, p, t in zip(("q", "k", "v"), got, plain, truth, strict=True):
        assert_no_worse(g, p, t, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 3, 5, 17, 70])
def test_a_cache_gives_what_the_whole_gives(queries, dtype):
    """Few queries: the keys are cut into slices, which are put together."""
    q, k, v = (torch.randn(2, n, 700, 40).to(dtype) for n in (6, 2, 2))
    stop = torch.arange(1, 701)
    intervals = torch.stack([stop * 0, stop, stop * 0, stop * 0], -1)[None]
    last = attend(q[:, :, -queries:], k, v, intervals[:, -queries:], 0.2)
    args = (q[:, :, -queries:], k, v, intervals[:, -queries:], 0.2)
    plain = plain_on_cuda(INTERVAL_ATTENTION, dtype)(*args)
    truth = INTERVAL_ATTENTION.reference(*(a.double() if i < 3 else a for i, a in enumerate(args)))
    for name, g, p, t in zip(("out", "logsumexp"), last, plain, truth, strict=True):
        assert_no_worse(g, p, t, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [2, 50])
def test_what_is_not_seen_does_not_matter(queries, dtype):
    """Neither its values nor its gradients, to the bit, also where blocks of keys are seen in part."""
    q, k, v = (torch.randn(1, 2, n, 16).to(dtype) for n in (queries, 300, 300))
    intervals = torch.tensor([[10, 75, 200, 230]]).expand(queries, -1)[None]
    seen = torch.cat([torch.arange(10, 75), torch.arange(200, 230)])
    others = torch.ones(300, dtype=torch.bool).index_fill(0, seen, False)
    up = torch.randn(1, 2, queries, 16).to(dtype)
    first = attend_and_back(q, k, v, intervals, 0.3, up)
    assert not first[2][:, :, others].any() and not first[3][:, :, others].any()
    changed = [x.masked_fill(others[:, None], 1e4) for x in (k, v)]
    for name, a, b in zip(("out", "q", "k", "v"), first, attend_and_back(q, *changed, intervals, 0.3, up), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "heads"), [(0, 2), (1, 0)])
def test_no_batch_or_no_heads(batch, heads, dtype):
    q, k, v = (torch.randn(batch, n, 5, 8).to(dtype) for n in (heads, 2, 2))
    intervals = torch.tensor([0, 5, 0, 0]).expand(1, 5, 4)
    out, *grads = attend_and_back(q, k, v, intervals, 1.0, torch.randn_like(q))
    assert out.shape == q.shape and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("bad", [[3, 2, 0, 0], [0, 10, 0, 0], [0, 1, -1, 2], [0, 1, 5, 4], [0, 2**32 + 1, 0, 0]])
def test_a_bad_interval_is_an_assertion_on_the_device(bad, kind):
    if max(bad) >= 2**31 and kind == torch.int32:
        pytest.skip("not an int32")
    q, k, v = torch.randn(2, 4, 70, 6), torch.randn(2, 2, 9, 6), torch.randn(2, 2, 9, 3)
    intervals = torch.zeros(2, 70, 4, dtype=kind)
    intervals[1, 66] = torch.tensor(bad)
    with pytest.raises(RuntimeError, match=r"expected 0 <= a <= b <= Skv and 0 <= c <= d <= Skv"):
        attend(q, k, v, intervals, 1.0)
