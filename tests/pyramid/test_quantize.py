"""Invariant 5: ids are exact. Encode -> ids -> codes -> ids is the identity in fp32, bf16 and fp16."""

import pytest
import torch

from pyramid.quantize import BitQuantizer, FSQQuantizer, LevelConfig, ResidualPyramid, VectorQuantizer, WordQuantizer
from pyramid.words import WordTable

QUANTIZERS = {
    "bits": lambda: BitQuantizer(12),
    "bits40": lambda: BitQuantizer(40, entropy=0),
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
    torch.testing.assert_close(out.codes, quantizer.ids_to_codes(out.ids), atol=1e-5, rtol=0)
    assert torch.equal(quantizer.codes_to_ids(out.codes), out.ids)


def test_gradient_passes_straight_through(quantizer):
    x = torch.randn(4, 30, quantizer.dim, requires_grad=True)
    out = quantizer.quantize(x)
    (out.codes.sum() + out.loss).backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().sum() > 0


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
    for _ in range(700):  # long enough for unused codes to count as dead
        quantizer.quantize(data)
    after = (quantizer.quantize(data).codes - data).square().mean()
    assert after < 0.2 * before
    assert len(quantizer.quantize(data).ids.unique()) >= 14  # dead codes were revived


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: BitQuantizer(0), "bits must be from 1 to 62, got 0"),
        (lambda: BitQuantizer(32), "reaches to 20 bits"),
        (lambda: FSQQuantizer((2, 5)), "at least 3 levels"),
        (lambda: VectorQuantizer(1, 4), "codebook_size >= 2"),
        (lambda: ResidualPyramid([], 8, (1, 1, 1)), "at least one level"),
        (lambda: ResidualPyramid([LevelConfig("words")], 8, (1, 1, 1)), "needs a word table"),
        (lambda: ResidualPyramid([LevelConfig("nonsense")], 8, (1, 1, 1)), "must be 'words', 'bits', 'fsq' or 'vq'"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_levels_of_every_kind_make_one_pyramid():
    torch.manual_seed(0)
    kinds = [LevelConfig(kind, 1, 2**i, 2**i) for i, kind in enumerate(("words", "vq", "fsq"))]
    pyramid = ResidualPyramid([*kinds, LevelConfig("bits", 2, 4, 4)], 16, (2, 4, 4), WordTable.load())
    latent = torch.randn(3, 16, 2, 4, 4)
    out = pyramid.eval()(latent)
    assert [tuple(ids.shape) for ids in out.ids] == [(3, 1, 1, 1), (3, 1, 2, 2), (3, 1, 4, 4), (3, 2, 4, 4)]
    torch.testing.assert_close(out.residual + sum(out.values), latent)
    torch.testing.assert_close(pyramid.decode(out.ids, (2, 4, 4)), sum(out.values), atol=1e-5, rtol=1e-5)
