import pytest
import torch

from pyramid.probe import MAX_FEATURES, code_features, fit_probe
from pyramid.quantize import LevelConfig
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(count=600, classes=5, dim=20, spread=0.3, seed=0):
    """Clouds around one centre a class, and on top of them features that mean nothing, one of them constant."""
    draw = generator(seed)
    centres = torch.randn(classes, dim, generator=generator(99))
    labels = torch.arange(count) % classes
    cloud = centres[labels] + spread * torch.randn(count, dim, generator=draw)
    return torch.cat([cloud * 50 + 7, torch.randn(count, 10, generator=draw), torch.ones(count, 1)], dim=1), labels


def test_separable_classes_are_read_without_a_fault():
    probe = fit_probe(*blobs(seed=1), 5, generator=generator())
    assert probe.accuracy(*blobs(seed=2)) == 1.0


def test_shuffled_labels_are_read_at_chance():
    features, labels = blobs(2000, seed=1)
    probe = fit_probe(features, labels[torch.randperm(2000, generator=generator(3))], 5, generator=generator())
    new, truth = blobs(2000, seed=2)
    # 2,000 clips of random classes: 0.2, standard deviation 0.009
    mixed = truth[torch.randperm(2000, generator=generator(4))]
    assert abs(probe.accuracy(new, mixed) - 0.2) < 0.05


def test_a_linear_probe_is_linear():
    """Exclusive or of two signs is not read, either sign is."""
    signs = torch.randint(0, 2, (4000, 2), generator=generator()) * 2.0 - 1
    both = (signs[:, 0] * signs[:, 1] > 0).long()
    assert abs(fit_probe(signs, both, 2, generator=generator()).accuracy(signs, both) - 0.5) < 0.05
    either = (signs[:, 0] > 0).long()
    assert fit_probe(signs, either, 2, generator=generator()).accuracy(signs, either) == 1.0


def test_the_fit_is_the_minimum():
    """At the minimum of the penalised cross-entropy its gradient is 0: weight * strength = -X^T (p - y) / N."""
    features, labels = blobs(200, spread=3.0)
    probe = fit_probe(features, labels, 5, generator=generator(), strengths=[0.05])
    x = ((features - probe.mean) * probe.scale).double()
    torch.testing.assert_close(x.mean(dim=0), torch.zeros_like(x[0]), atol=1e-5, rtol=0)
    assert (x[:, -1] == 0).all()  # the constant one
    torch.testing.assert_close(x[:, :-1].square().mean(dim=0), torch.ones_like(x[0, :-1]), atol=1e-4, rtol=0)
    surplus = (x @ probe.weight.double() + probe.bias).softmax(dim=1) - torch.nn.functional.one_hot(labels, 5)
    torch.testing.assert_close(-x.T @ surplus / 200, 0.05 * probe.weight.double(), atol=2e-4, rtol=0)


def test_held_out_clips_choose_the_penalty():
    """Five useful features among 200, noisy classes: 100 lets nothing be learned, 1e-6 learns the noise."""
    draw, weight = generator(5), (torch.arange(200) < 5) / 5**0.5

    def make(count):
        x = torch.randn(count, 200, generator=draw)
        return x, (2 * x @ weight + 1.5 * torch.randn(count, generator=draw) > 0).long()

    train, new = make(400), make(2000)
    chosen = fit_probe(*train, 2, generator=generator(), strengths=[1e-6, 100, 0.1])
    assert chosen.strength == 0.1
    for strength, margin in ((100, 0.05), (1e-6, 0.01)):
        other = fit_probe(*train, 2, generator=generator(), strengths=[strength])
        assert chosen.accuracy(*new) > other.accuracy(*new) + margin


def test_a_seed_gives_the_same_probe():
    data = blobs(spread=3.0)
    one, two = (fit_probe(*data, 5, generator=generator(7)) for _ in range(2))
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


def test_bad_input_is_refused():
    features, labels = blobs()
    with pytest.raises(ValueError, match=r"fit_probe: expected features .* got \(600, 31\) and \(599,\)"):
        fit_probe(features, labels[1:], 5, generator=generator())
    with pytest.raises(ValueError, match="fit_probe: expected classes from 0 to 3, got 0 to 4"):
        fit_probe(features, labels, 4, generator=generator())


LEVELS = (
    LevelConfig("vq", 1, 1, 1, codebook_size=32, code_dim=6),
    LevelConfig("bits", 1, 2, 2, bits=5),
    LevelConfig("fsq", 2, 8, 8, fsq_levels=(5, 3)),
    LevelConfig("bits", 2, 8, 8, bits=40),
)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return PyramidTokenizer(TokenizerConfig(channels=(8, 16), depths=(0, 1), dim=16, depth=0, levels=LEVELS)).eval()


def test_features_are_the_code_vectors(tokenizer):
    tokens = tokenizer.encode(torch.rand(3, 3, 9, 32, 32) * 2 - 1)
    vq, bits, fsq, long = code_features(tokenizer, tokens)
    codes = tokenizer.levels.levels[0].quantizer.ids_to_codes
    assert torch.equal(vq, torch.cat([codes(ids[0]).flatten(1) for ids in tokens.ids], dim=1))
    # level 2: numbers of a code, then its grid, chunk by chunk
    assert bits.shape == (3, 2 * 5 * 4) and set(bits.unique().tolist()) <= {-1.0, 1.0}
    whole = tokenizer.levels.levels[1].quantizer.ids_to_codes(tokens.ids[1][1])  # N t h w E
    assert torch.equal(bits[:, 20:].unflatten(1, (5, 1, 2, 2)), whole.movedim(-1, 1))
    # level 3: 8x8 cells averaged to 4x4, times kept: 1 of the first chunk, 2 of the second
    assert fsq.shape == (3, 2 * 16 * 3)
    cells = tokenizer.levels.levels[2].quantizer.ids_to_codes(tokens.ids[0][2])[:, :, :2, :2].mean(dim=(1, 2, 3))
    torch.testing.assert_close(fsq[:, :32].unflatten(1, (2, 4, 4))[:, :, 0, 0], cells)
    assert long.shape == (3, MAX_FEATURES)  # of 40 * 16 * 3


def test_a_prefix_has_the_features_of_the_whole(tokenizer):
    tokens = tokenizer.encode(torch.rand(2, 3, 9, 32, 32) * 2 - 1)
    whole, prefix = code_features(tokenizer, tokens), code_features(tokenizer, tokens.truncate(2))
    assert len(prefix) == 2 and all(torch.equal(a, b) for a, b in zip(whole, prefix, strict=False))


def test_hashing_keeps_what_a_linear_probe_reads():
    from pyramid.probe import _hashed

    draw = generator(1)
    signs = torch.randint(0, 2, (3000, 4096), generator=draw) * 2.0 - 1
    labels = signs[:, :4096:512].sum(dim=1) > 0  # a linear function of 8 of them
    small = _hashed(signs, 1024, seed=3)
    assert torch.equal(small, _hashed(signs, 1024, seed=3))
    squares = (small.square().sum(dim=1) / signs.square().sum(dim=1)).mean()
    assert abs(squares - 1) < 0.05
    single = torch.zeros(1, 4096)
    single[0, 100] = 1
    assert _hashed(single, 1024, seed=3).abs().sum() == 1
    assert torch.equal(_hashed(signs[:, :1024], 1024, seed=3), signs[:, :1024])
    probe = fit_probe(small[:2000], labels[:2000].long(), 2, generator=generator())
    assert probe.accuracy(small[2000:], labels[2000:].long()) > 0.6
