"""What the tests of the verbs share: a small random model, and a clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lm.backbone import LMConfig, make_backbone
from lm.model import PyramidLM
from lm.vocabulary import train_text_tokenizer
from pyramid.data.video import write_video
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random model: what it makes is noise, but all of it is there."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = TokenizerConfig(channels=(8, 16), depths=(1, 1), dim=32, depth=1)
    tokenizer = PyramidTokenizer(config)
    tokenizer.save_pretrained(folder / "tokenizer")
    small = LMConfig(dim=32, num_layers=1, num_heads=2, mlp=32, text_size=300, max_text=8)
    text = train_text_tokenizer(["a red star moves left"], small.text_size)
    PyramidLM(small, tokenizer, text, make_backbone(small, len(text))).save_pretrained(folder / "lm")
    return str(folder)


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "in" / "clip one.mp4"
    path.parent.mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (6, 24, 40, 3), dtype=np.uint8)
    write_video(path, list(frames), fps=12)
    return path
