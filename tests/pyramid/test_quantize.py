"""Invariant 5: ids are exact. Encode -> ids -> codes -> ids is the identity in fp32, bf16 and fp16."""

import pytest
import torch

from pyramid import ops
from pyramid.quantize import BitQuantizer, FSQQuantizer, LevelConfig, ResidualPyramid, VectorQuantizer, WordQuantizer
from pyramid.words import WordTable

QUANTIZERS = {
    "bits": lambda: BitQuantizer(12),
    "bits40": lambda: BitQuantizer(40),
    "fsq": lambda: FSQQuantizer((8, 5, 5, 5)),
    "fsq_wide": lambda: FSQQuantizer((8, 8, 8, 5, 5, 5)),
    "vq": lambda: VectorQuantizer(512, 8),
    "words": lambda: WordQuantizer(WordTable.load()),
}


@pytest.fixture(params=QUANTIZERS)
def quantizer(request):
    torch.manual_seed(0)
    return QUANTIZERS[request.param]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ids_round_trip(quantizer, dtype):
    ids = torch.randint(0, quantizer.codebook_size, (3, 200))
    codes = quantizer.ids_to_codes(ids)
    assert codes.shape == (3, 200, quantizer.dim) and codes.dtype == torch.float32
    assert torch.equal(quantizer.codes_to_ids(codes.to(dtype)), ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantized_codes_are_the_codes_of_their_ids(quantizer, dtype):
    quantizer.eval()
    x = torch.randn(2, 50, quantizer.dim).to(dtype)
    out = quantizer.quantize(x)
    assert out.ids.dtype == torch.int64 and int(out.ids.min()) >= 0 and int(out.ids.max()) < quantizer.codebook_size
    assert torch.equal(out.codes, quantizer.ids_to_codes(out.ids))
    assert torch.equal(quantizer.codes_to_ids(out.codes), out.ids)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_none_get_an_id_in_range(quantizer, value):
    ids = quantizer.eval().quantize(torch.full((3, quantizer.dim), value)).ids
    assert int(ids.min()) >= 0 and int(ids.max()) < quantizer.codebook_size


def before_quantization(quantizer, x):
    """The differentiable part of each quantizer: what the straight-through gradient goes through."""
    if isinstance(quantizer, BitQuantizer):
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    if isinstance(quantizer, FSQQuantizer):
        size = torch.tensor(quantizer.levels)
        half, offset = (size - 1) / 2 * 0.999, (size % 2 == 0) / 2
        return (torch.tanh(x + torch.atanh(offset / half)) * half - offset) / (size // 2)
    if isinstance(quantizer, VectorQuantizer):  # the matrix that turns and scales x onto its code, held fixed
        fixed, code = x.detach(), quantizer.ids_to_codes(quantizer.codes_to_ids(x))
        e, q = (torch.nn.functional.normalize(v, dim=-1)[..., None] for v in (fixed, code))
        r = torch.nn.functional.normalize(e + q, dim=-2)
        turn = torch.eye(x.shape[-1]) - 2 * r @ r.mT + 2 * q @ e.mT
        turn = turn * (code.norm(dim=-1) / fixed.norm(dim=-1))[..., None, None]
        torch.testing.assert_close((turn @ fixed[..., None])[..., 0], code)
        return (turn @ x[..., None])[..., 0]
    return x


def test_gradient_of_the_codes_reaches_what_was_quantized(quantizer):
    """Of the codes alone: the loss has a gradient of its own."""
    x = torch.randn(4, 30, quantizer.dim, requires_grad=True)
    weight = torch.randn(4, 30, quantizer.dim)
    (grad,) = torch.autograd.grad((quantizer.quantize(x).codes * weight).sum(), x)
    (expected,) = torch.autograd.grad((before_quantization(quantizer, x) * weight).sum(), x)
    torch.testing.assert_close(grad, expected)
    assert grad.abs().sum() > 0


def test_many_bits_are_spread_in_groups():
    """Up to 20 bits the entropy of the batch is exact; above, the sum over groups, at least the exact one."""
    x = torch.randn(64, 24)
    quantizer = BitQuantizer(24, commitment=0, entropy=1)
    normed = before_quantization(quantizer, x)
    each = ops.bit_quantize(normed, 1.0).entropy.mean()
    diversity = each - quantizer.quantize(x).loss
    groups = ops.joint_bit_entropy(normed[:, :20], 1.0) + ops.joint_bit_entropy(normed[:, 20:], 1.0)
    torch.testing.assert_close(diversity, groups)
    assert diversity >= ops.joint_bit_entropy(normed, 1.0)


def test_bits_are_little_endian():
    quantizer = BitQuantizer(4)
    assert quantizer.codes_to_ids(torch.tensor([1.0, -1.0, -1.0, 1.0])).item() == 1 + 8
    assert quantizer.ids_to_codes(torch.tensor(6)).tolist() == [-1, 1, 1, -1]


def test_a_learned_codebook_follows_the_data():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 4).train()
    centres = torch.randn(16, 4) * 3
    data = centres[torch.randint(0, 16, (2000,))] + 0.05 * torch.randn(2000, 4)
    before = (quantizer.quantize(data).codes - data).square().mean()
    for _ in range(100):  # long enough for unused codes to count as dead
        quantizer.update(data, quantizer.codes_to_ids(data))
    after = (quantizer.quantize(data).codes - data).square().mean()
    assert after < 0.2 * before
    assert len(quantizer.quantize(data).ids.unique()) >= 14  # dead codes were revived


def test_a_codebook_starts_among_the_first_vectors():
    quantizer = VectorQuantizer(16, 4).train()
    data = 100 + torch.randn(500, 4)
    assert quantizer.update(data, quantizer.codes_to_ids(data)) == 0
    assert len(quantizer.quantize(data).ids.unique()) == 16
    assert (quantizer.quantize(data).codes - data).square().mean() < 0.5 * data.var()
    again = VectorQuantizer(64, 4).train()  # fewer vectors than codes: none is left behind
    again.update(data[:10], again.codes_to_ids(data[:10]))
    torch.testing.assert_close(again.quantize(data[:10]).codes, data[:10])


def test_quantizing_leaves_the_codebook_alone():
    quantizer = VectorQuantizer(16, 4).train()
    before = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    quantizer.quantize(torch.randn(50, 4, requires_grad=True)).loss.backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in quantizer.named_buffers())


def test_codes_in_use_stay():
    """Fewer vectors a call than codes, all codes used alike: each is used now and then, and none is dead."""
    centres = torch.randn(256, 16)
    quantizer = VectorQuantizer(256, 16).train()
    quantizer.embeddings.copy_(centres)
    quantizer.sums.copy_(centres)
    quantizer.started.fill_(True)
    for _ in range(2000):  # uses of each code: 31
        some = centres[torch.randint(256, (4,))]
        assert quantizer.update(some, quantizer.codes_to_ids(some)) == 0
    torch.testing.assert_close(quantizer.embeddings, centres)


def test_dead_codes_restart_at_different_vectors():
    quantizer = VectorQuantizer(16, 4).train()
    quantizer.started.fill_(True)
    data = 100 + torch.randn(16, 4)  # nearest to one code, all of them
    restarted = [quantizer.update(data, quantizer.codes_to_ids(data)) for _ in range(22)]
    assert sum(restarted) == 15
    assert len(quantizer.embeddings.unique(dim=0)) == 16
    assert len(quantizer.quantize(data).ids.unique()) >= 15


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: BitQuantizer(0), "bits must be from 1 to 62, got 0"),
        (lambda: FSQQuantizer((2, 5)), "at least 3 levels"),
        (lambda: VectorQuantizer(1, 4), "codebook_size >= 2"),
        (lambda: ResidualPyramid([], 8, (1, 1, 1)), "ResidualPyramid: expected at least one level"),
        (lambda: ResidualPyramid([LevelConfig("words")], 8, (1, 1, 1)), "needs a word table"),
        (lambda: LevelConfig("nonsense"), "codebook must be 'words', 'bits', 'fsq' or 'vq', got 'nonsense'"),
        (lambda: LevelConfig(h=0), "LevelConfig: h must be at least 1, got 0"),
        (lambda: LevelConfig("bits", bits=63), "LevelConfig: bits must be from 1 to 62, got 63"),
        (lambda: LevelConfig("fsq", fsq_levels=()), r"fsq_levels must be one or more numbers of at least 3, got \(\)"),
        (lambda: LevelConfig("fsq", fsq_levels=(8, 2)), r"at least 3, got \(8, 2\)"),
        (lambda: LevelConfig("vq", codebook_size=1), "codebook_size must be at least 2, got 1"),
        (lambda: LevelConfig("vq", code_dim=0), "code_dim must be at least 1, got 0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
