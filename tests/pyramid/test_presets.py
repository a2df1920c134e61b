"""The presets that ship: they load, make a network, and cost what their comments say."""

import importlib.resources
import math

import pytest
import torch

from pyramid.config import load
from pyramid.tokenizer import PyramidTokenizer
from pyramid.train import TrainTokenizerConfig

CONFIGS = importlib.resources.files("pyramid") / "configs"
# tokens a chunk and bits a pixel; millions of parameters
PRESETS = {
    "mini": (57, 0.083, 6.4),
    "small": (355, 0.171, 6.8),
    "handwriting": (477, 0.162, 6.8),
    "robot": (837, 0.161, 6.8),
    "base": (597, 0.082, 17.3),
    "large": (2389, 0.082, 179.8),
}
FOLDERS = ("handwriting", "robot")


def read(name):
    clips = ["data.path=clips"] if name in FOLDERS else []  # of a folder, which there is no default for
    return load(TrainTokenizerConfig, str(CONFIGS / f"{name}.yaml"), overrides=clips)


def test_every_preset_is_known_here():
    assert sorted(PRESETS) == sorted(path.name.removesuffix(".yaml") for path in CONFIGS.iterdir())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_makes_a_tokenizer(name):
    config = read(name).model
    with torch.device("meta"):
        tokenizer = PyramidTokenizer(config)
    pyramid = tokenizer.pyramids(config.num_frames)[-1]
    sizes = [level.quantizer.codebook_size for level in tokenizer.levels.levels]
    bits = sum(count * math.log2(size) for count, size in zip(pyramid.counts, sizes, strict=True))
    tokens, bits_per_pixel, millions = PRESETS[name]
    assert pyramid.num_tokens == tokens
    assert bits / (config.chunk_frames * config.height * config.width) == pytest.approx(bits_per_pixel, abs=0.002)
    assert sum(p.numel() for p in tokenizer.parameters()) / 1e6 == pytest.approx(millions, rel=0.1)


@pytest.mark.parametrize("name", PRESETS)
def test_words_on_top_codes_below(name):
    config = read(name).model
    kinds = [level.codebook for level in config.levels]
    below = "vq" if name in FOLDERS else "bits"
    assert kinds == sorted(kinds, key=["words", below].index) and set(kinds) == {"words", below}
    counts = [level.t * level.h * level.w for level in config.levels]
    assert counts == sorted(counts)
    assert (config.num_frames - 1) % config.chunk_frames == 0
    assert config.height % config.stride == config.width % config.stride == 0
