"""Training the language model: both directions, what a run writes, resuming."""

import csv

import pytest
import torch

from lm.model import PyramidLM
from lm.train import LMTraining, TrainLMConfig, make_lm, train_lm
from pyramid.config import load
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.optim import MuonAdamW
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig

MODEL = TokenizerConfig(channels=(8, 16, 24), depths=(0, 1, 1), dim=32, depth=1, latent_dim=16)


@pytest.fixture
def config(tmp_path):
    torch.manual_seed(0)
    PyramidTokenizer(MODEL).save_pretrained(tmp_path / "tokenizer")
    small = {
        "tokenizer": str(tmp_path / "tokenizer"),
        "model": {"dim": 64, "num_layers": 2, "num_heads": 2, "mlp": 96, "text_size": 300},
        "data": {"num_clips": 32, "num_val": 4},
        "run": {"max_minutes": 0, "max_steps": 4, "batch_size": 4, "val_every": 2, "checkpoint_every": 4},
    }
    overrides = ["run.precision=fp32", "run.device=cpu", "run.log_every=2", "run.val_batches=1"]
    return load(TrainLMConfig, small, overrides=overrides)


def test_a_run_writes_a_model_that_loads(config, tmp_path):
    out = train_lm(config, tmp_path / "lm")
    lm = PyramidLM.from_pretrained(out)
    assert lm.generate(["a small red star moves left"], detail=2).num_levels == 2
    with open(out / "metrics.csv", newline="") as file:
        fields = {name for row in csv.DictReader(file) for name, value in row.items() if value}
    assert {"train/caption", "train/loss", "val/level5", "val/caption_exact"} <= fields
    assert load(TrainLMConfig, out / "train_config.yaml") == config


def test_two_clips_are_overfitted_in_both_directions(config):
    """The first gate: captions come back exactly, and the codes become likely."""
    torch.manual_seed(0)
    items = ShapesDataset(preset("mini")).__getitems__([0, 1])
    captions = [item["caption"] for item in items]
    lm = make_lm(config, PyramidTokenizer.from_pretrained(config.tokenizer), captions)
    tokens = lm.tokenizer.encode(torch.stack([item["video"] for item in items]))
    sentences = [lm.text_ids(caption) for caption in captions]
    optimizer = MuonAdamW(lm, (lm.backbone.base_model,), lr=4e-3, weight_decay=0.0)
    history = []
    for _ in range(120):
        losses = lm.generation_loss(tokens, sentences, 5)
        loss = sum(losses.values()) / 5 + lm.caption_loss(tokens.truncate(2), sentences, 2)
        history.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert history[-1] < 0.25 * history[0]
    assert lm.eval().caption(tokens) == captions


def test_prompts_are_dropped_and_reworded(config):
    torch.manual_seed(0)
    lm = make_lm(config, PyramidTokenizer.from_pretrained(config.tokenizer), ["a red star"])
    module = LMTraining(config, lm)
    prompts = module._prompts({"caption": ["a red star"] * 2000, "paraphrase": ["a scarlet star"] * 2000})
    lengths = {len(prompt) for prompt in prompts}
    empty = sum(not prompt for prompt in prompts) / 2000
    assert 0.07 < empty < 0.13 and len(lengths) == 3


def test_a_missing_tokenizer_is_named(config, tmp_path):
    with pytest.raises(ValueError, match="expected the folder of a trained tokenizer, got none"):
        train_lm(load(TrainLMConfig), tmp_path / "lm")
    broken = load(TrainLMConfig, overrides=[f"tokenizer={tmp_path / 'none'}"])
    with pytest.raises(FileNotFoundError, match="expected a folder with config.json"):
        train_lm(broken, tmp_path / "lm")
    with pytest.raises(FileNotFoundError, match="expected a checkpoint, found no file"):
        train_lm(config, tmp_path / "lm", resume=True)
