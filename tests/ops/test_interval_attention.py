"""What is special to interval_attention: its definition, sizes and strides at random, empty rows, bad intervals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_no_worse
from ops.cases_interval_attention import intervals_of

from pyramid import ops
from pyramid.ops import _library, reference

native_only = pytest.mark.skipif(not _library.load(), reason="the extension is not built")


@pytest.fixture(params=["native", "reference"])
def either(request: pytest.FixtureRequest):
    if request.param == "native" and not _library.load():
        pytest.skip("the extension is not built")
    with ops.backend(request.param):
        yield request.param


def by_loops(q, k, v, intervals, scale):
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


def inputs(dtype=torch.float64, batches=2):
    q = torch.randn(2, 4, 5, 6, dtype=dtype, requires_grad=True)
    k = torch.randn(2, 2, 9, 6, dtype=dtype, requires_grad=True)
    v = torch.randn(2, 2, 9, 3, dtype=dtype, requires_grad=True)
    return q, k, v, torch.randint(0, 10, (batches, 5, 2, 2)).sort(-1).values.flatten(2)


@pytest.mark.parametrize("batches", [1, 2])
def test_it_is_its_definition(batches, either):
    q, k, v, intervals = inputs(batches=batches)
    out = ops.interval_attention(q, k, v, intervals, scale=0.7)
    torch.testing.assert_close(out, by_loops(q, k, v, intervals, 0.7))
    assert torch.autograd.gradcheck(lambda *a: ops.interval_attention(*a, intervals), (q, k, v))


@native_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("queries", "dim", "value_dim"), [(29, 1, 21), (30, 2, 26), (64, 8, 64), (7, 70, 130), (3, 70, 40)]
)
def test_where_one_key_is_seen_nothing_depends_on_its_score(queries, dim, value_dim, dtype):
    """The two terms of the score's gradient cancel, to the last bit, not to rounding times the scale."""
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, 1, n, d).to(dtype).requires_grad_() for n, d in ((queries, dim), (1, dim), (1, value_dim))
    )
    intervals = torch.tensor([0, 1, 1, 1]).expand(1, queries, 4).contiguous()
    out = ops.interval_attention(q, k, v, intervals, scale=8.0)
    assert torch.equal(out, v.expand_as(out))
    up = torch.randn_like(out)
    of_q, of_k, of_v = torch.autograd.grad(out, (q, k, v), up)
    assert_no_worse(
        of_v, up.sum(2, keepdim=True), up.double().sum(2, keepdim=True), "values", floor=torch.finfo(dtype).eps
    )
    bound = 0.0 if dtype == torch.float32 else 1e-2
    assert float(of_q.abs().max()) <= bound and float(of_k.abs().max()) <= bound


@native_only
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    queries=st.integers(0, 70),
    keys=st.integers(0, 210),
    dim=st.integers(1, 70),
    value_dim=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.permutations([0, 1, 2]),
    padding=st.integers(0, 3),
    scale=st.sampled_from([None, 0.0, 1.0, 8.0, -0.5]),
    seed=st.integers(0, 2**31),
)
def test_any_size_stride_and_dtype(
    batch, kv_heads, group, queries, keys, dim, value_dim, dtype, layout, padding, scale, seed
):
    """As near to float64 as plain PyTorch, forward and backward, over any order of the first three axes in memory."""
    torch.manual_seed(seed)

    def heads(*shape):
        buffer = torch.randn([shape[axis] for axis in layout] + [shape[3] + padding]).to(dtype)
        back = [layout.index(axis) for axis in range(3)]
        return buffer.permute(*back, 3)[..., : shape[3]]

    q = heads(batch, kv_heads * group, queries, dim)
    k, v = heads(batch, kv_heads, keys, dim), heads(batch, kv_heads, keys, value_dim)
    intervals = intervals_of(batch, queries, keys, torch.device("cpu")) if batch else torch.zeros(1, queries, 4).long()
    by = dim**-0.5 if scale is None else scale
    up = torch.randn(batch, kv_heads * group, queries, value_dim)

    def forward_backward(function, kind):
        leaves = [x.detach().to(kind).requires_grad_() for x in (q, k, v)]
        if kind == dtype:  # keep the strides
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = function(*leaves)
        grads = torch.autograd.grad(out, leaves, up.to(kind), materialize_grads=True)
        return out, torch.cat([grad.flatten() for grad in grads])  # with a single key that of q is 0 but for rounding

    got = forward_backward(lambda *a: ops.interval_attention(*a, intervals, scale), dtype)
    plain = forward_backward(lambda *a: reference.interval_attention(*a, intervals, by), dtype)
    truth = forward_backward(lambda *a: reference.interval_attention(*a, intervals, by), torch.float64)
    # Few numbers: plain may happen to be exact, so one more rounding of the dtype is allowed, and of the scores, which
    # are in float32 whatever is done with them. That ours is no worse on average: the next test.
    scores = q.float() @ k.float().repeat_interleave(group, 1).mT * by
    largest = float(scores.abs().max()) if scores.numel() else 0.0
    floor = max(4e-6, torch.finfo(dtype).eps, torch.finfo(torch.float32).eps * largest)
    for name, g, p, t in zip(("out", "gradients"), got, plain, truth, strict=True):
        assert_no_worse(g, p, t.detach(), name, floor=floor)


@native_only
@pytest.mark.parametrize(("queries", "keys"), [(3, 5), (3, 200), (40, 5), (40, 200)])
def test_scores_of_hundreds_are_no_harder_than_for_plain_pytorch(queries, keys):
    """There the softmax is nearly one key's, and what the gradients of scores are differences of nearly cancels: the
    errors of out and gradients, as a ratio to those of plain PyTorch, over cases at random."""
    ratios = []
    for seed in range(60):
        torch.manual_seed(seed)
        q, k, v = torch.randn(2, 1, queries, 40), torch.randn(2, 1, keys, 40), torch.randn(2, 1, keys, 24)
        intervals, up = intervals_of(2, queries, keys, q.device), torch.randn(2, 1, queries, 24)

        def results(function, dtype, inputs=(q, k, v), intervals=intervals, up=up):
            leaves = [x.to(dtype).requires_grad_() for x in inputs]
            out = function(*leaves, intervals, 8.0)
            return [out.detach(), *torch.autograd.grad(out, leaves, up.to(dtype))]

        truth = results(reference.interval_attention, torch.float64)
        native, plain = (
            torch.stack(
                [(got - exact).abs().max() for got, exact in zip(results(function, torch.float32), truth, strict=True)]
            )
            for function in (ops.interval_attention, reference.interval_attention)
        )
        ratios.append((native.clamp_min(1e-12) / plain.clamp_min(1e-12)).log())
    means = torch.stack(ratios).mean(0).exp()
    assert float(means.max()) < 1.4, means


def test_it_covers_causal(either):
    q, k, v = (torch.randn(1, 2, 7, 4) for _ in range(3))
    row = torch.arange(7)
    intervals = torch.stack([row * 0, row + 1, row * 0, row * 0], -1)[None]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ops.interval_attention(q, k, v, intervals), expected)


def test_what_sees_nothing_is_zeros(either):
    q, k, v, intervals = inputs()
    intervals[0, 2] = torch.tensor([4, 4, 0, 0])
    out = ops.interval_attention(q, k, v, intervals)
    assert not out[0, :, 2].any()
    out.sum().backward()
    assert not q.grad[0, :, 2].any() and k.grad.isfinite().all() and v.grad.isfinite().all()
    none = ops.interval_attention(q, k[:, :, :0], v[:, :, :0], intervals * 0)
    assert none.shape == (2, 4, 5, 3) and not none.any()
    assert not torch.autograd.grad(none.sum(), q)[0].any()


@native_only
@pytest.mark.parametrize("queries", [2, 50])
def test_what_is_not_seen_does_not_matter(queries, instruction_set):
    """Neither its values nor its gradients, to the bit, also where blocks of keys are seen in part."""
    q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for n in (queries, 300, 300))
    intervals = torch.tensor([[10, 75, 200, 230]]).expand(queries, -1)[None]
    seen = torch.cat([torch.arange(10, 75), torch.arange(200, 230)])
    others = torch.ones(300, dtype=torch.bool).index_fill(0, seen, False)
    out = ops.interval_attention(q, k, v, intervals)
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert not grads[1][:, :, others].any() and not grads[2][:, :, others].any()
    changed = [x.detach().clone().masked_fill_(others[:, None], 1e4).requires_grad_() for x in (k, v)]
    again = ops.interval_attention(q, *changed, intervals)
    assert torch.equal(again, out)
    assert torch.equal(torch.autograd.grad(again.square().sum(), q)[0], grads[0])


@native_only
@pytest.mark.parametrize("queries", [1, 3, 4, 5, 17])
def test_a_cache_gives_what_the_whole_gives(queries, instruction_set):
    """The last queries alone against all keys: few of them take another path through the kernel."""
    q, k, v = (torch.randn(2, n, 333, 40) for n in (6, 2, 2))
    stop = torch.arange(1, 334)
    intervals = torch.stack([stop * 0, stop, stop * 0, stop * 0], -1)[None]
    whole = ops.interval_attention(q, k, v, intervals)
    last = ops.interval_attention(q[:, :, -queries:], k, v, intervals[:, -queries:])
    torch.testing.assert_close(last, whole[:, :, -queries:], rtol=1e-5, atol=1e-6)


@native_only
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_other_rows_do_not_matter(axis):
    q, k, v = torch.randn(3, 4, 60, 8), torch.randn(3, 4, 90, 8), torch.randn(3, 4, 90, 8)
    intervals = intervals_of(3, 60, 90, q.device)
    whole = ops.interval_attention(q, k, v, intervals)
    if axis == 0:
        parts = [ops.interval_attention(*(x[i : i + 1] for x in (q, k, v, intervals))) for i in range(3)]
    elif axis == 1:
        parts = [ops.interval_attention(*(x[:, i : i + 1] for x in (q, k, v)), intervals) for i in range(4)]
    else:
        parts = [ops.interval_attention(q[:, :, s], k, v, intervals[:, s]) for s in (slice(0, 13), slice(13, 60))]
    assert torch.equal(torch.cat(parts, axis), whole)


def test_nan_stays_in_its_row(either):
    q, k, v, intervals = inputs(torch.float32)
    intervals = torch.tensor([0, 9, 0, 0]).expand(2, 5, 4)
    with torch.no_grad():
        q[1, 2, 3] = torch.nan
    out = ops.interval_attention(q, k, v, intervals)
    assert out[1, 2, 3].isnan().all() and out.isnan().sum() == 3


@native_only
@pytest.mark.parametrize("queries", [2, 20])
def test_scores_beyond_exp(queries, instruction_set):
    q, k, v = torch.full((1, 1, queries, 4), 1e4), torch.randn(1, 1, 30, 4), torch.randn(1, 1, 30, 4)
    intervals = torch.tensor([0, 30, 0, 0]).expand(1, queries, 4)
    out = ops.interval_attention(q, k, v, intervals)
    best = (k[0, 0] @ q[0, 0, 0]).argmax()
    torch.testing.assert_close(out, v[:, :, best : best + 1].expand_as(out))


def test_int32_intervals(either):
    q, k, v, intervals = inputs()
    assert torch.equal(ops.interval_attention(q, k, v, intervals.int()), ops.interval_attention(q, k, v, intervals))


@pytest.mark.parametrize("bad", [[3, 2, 0, 0], [0, 10, 0, 0], [0, 1, -1, 2], [0, 1, 5, 4], [0, 2**32 + 1, 0, 0]])
def test_a_bad_interval_is_named(bad, either):
    q, k, v, intervals = inputs()
    intervals[1, 3] = torch.tensor(bad)
    with pytest.raises(ValueError, match=r"0 <= a <= b <= 9 .* got \[.*\] for query 3 of batch 1"):
        ops.interval_attention(q, k, v, intervals)


def test_autocast_gives_its_dtype(either):
    """As scaled_dot_product_attention, whatever mix of dtypes the layers before gave."""
    q, k, v, intervals = inputs(torch.float32)
    expected = ops.interval_attention(q, k, v, intervals)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.interval_attention(q, k, v.bfloat16(), intervals)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_a_training_step_compiles_in_one_graph(either):
    q, k, v, intervals = inputs(torch.float32)

    def loss(q, k, v):
        return ops.interval_attention(q, k, v, intervals).square().sum()

    expected = torch.autograd.grad(loss(q, k, v), (q, k, v))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(torch.autograd.grad(compiled(q, k, v), (q, k, v)), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_gradient_of_the_gradient(either):
    q, k, v, intervals = inputs()
    q, k, v = (x.detach()[:1, :2, :3].requires_grad_() for x in (q, k, v))
    intervals = intervals[:1, :3].clamp(max=3)
    assert torch.autograd.gradgradcheck(lambda *a: ops.interval_attention(*a, intervals), (q, k, v))
