"""Training the language model: both directions, what a run writes, resuming."""

import csv
import dataclasses

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lm.backbone import LMConfig
from lm.decoding import TextWarning
from lm.gates import LMGateConfig
from lm.model import PyramidLM
from lm.train import LMTraining, TrainLMConfig, check_gates, make_lm, train_lm
from lm.train_data import texts_of, warn_of_cut
from pyramid.config import load
from pyramid.data.recode import RecodedClips
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.gates import GateError
from pyramid.optim import MuonAdamW
from pyramid.quantize import LevelConfig
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
    forecasts = []
    out = train_lm(config, tmp_path / "lm", forecast=forecasts.append)
    assert (forecasts[0].steps, forecasts[0].tokens) == (4, 16 * 98)
    lm = PyramidLM.from_pretrained(out)
    assert lm.generate(["a small red star moves left"], detail=2).num_levels == 2
    with open(out / "metrics.csv", newline="") as file:
        fields = {name for row in csv.DictReader(file) for name, value in row.items() if value}
    assert {"train/loss", "val/level5", "val/caption_exact"} <= fields
    assert load(TrainLMConfig, out / "train_config.yaml") == config


class Interrupt(Callback):
    def on_train_batch_end(self, trainer, module, *args):
        if module.step == 3:
            raise KeyboardInterrupt


def test_stopped_and_resumed_equals_uninterrupted(config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_lm(config, tmp_path / "stopped", callbacks=[Interrupt()])
    train_lm(config, tmp_path / "stopped", resume=True)
    train_lm(config, tmp_path / "whole")
    a, b = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("stopped", "whole"))
    for state in ("state_dict", "current_model_state"):
        assert all(torch.equal(a[state][name], b[state][name]) for name in b[state])
    assert a["step"] == b["step"] == 4


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
        loss = sum(losses.values()) / 5 + lm.reading_loss(tokens.truncate(2), sentences, 2)
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
    prompts = module._prompts({"caption": ["a red star"] * 2000, "paraphrase": ["a scarlet star"] * 2000}, "generate")
    lengths = {len(prompt) for prompt in prompts}
    empty = sum(not prompt for prompt in prompts) / 2000
    assert 0.07 < empty < 0.13 and len(lengths) == 3


def make_training(config, tokenizer, logged):
    """A module without a trainer; what it logs is put into `logged`."""
    module = LMTraining(config, make_lm(config, tokenizer, ["a red star moves left"]))
    module.log = lambda name, value, **_: logged.update({name: float(value)})
    module.log_dict = lambda values, **_: None
    return module


def test_a_tokenizer_of_one_level_is_trained_and_read(config):
    torch.manual_seed(0)
    model = dataclasses.replace(MODEL, levels=(LevelConfig("bits", 1, 2, 2, bits=4),))
    logged = {}
    module = make_training(config, PyramidTokenizer(model), logged)
    batch = {"video": torch.rand(2, 3, 9, 32, 32) * 2 - 1, "caption": ["a red star moves left"] * 2}
    for module.step in range(24):
        assert module.objective(batch).isfinite()
    assert logged["train/caption"] > 0 and "refine" not in module.curriculum.tasks
    assert module.lm.config.caption_detail == 1 and len(module.lm.caption(batch["video"])) == 2


@torch.no_grad()
def test_validation_is_in_float32_whatever_the_training(config):
    torch.manual_seed(0)
    exact, mixed = {}, {}
    module = make_training(config, PyramidTokenizer.from_pretrained(config.tokenizer), exact)
    batch = {"video": torch.rand(2, 3, 9, 32, 32) * 2 - 1, "caption": ["a red star moves left"] * 2}
    module.validation_step(batch, 0)
    module.log = lambda name, value, **_: mixed.update({name: float(value)})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module.validation_step(batch, 0)
    assert mixed == exact and len(exact) == 6


def test_a_pretrained_backbone_is_trained_in_training_mode(config, tmp_path):
    tokenizer = PyramidTokenizer.from_pretrained(config.tokenizer)
    own = make_lm(config, tokenizer, ["a red star"])
    own.save_pretrained(tmp_path / "lm")
    named = dataclasses.replace(config, model=LMConfig(backbone=str(tmp_path / "lm" / "backbone")))
    for changed in (named, dataclasses.replace(config, initialize=str(tmp_path / "lm"))):
        lm = LMTraining(changed, make_lm(changed, tokenizer, [])).lm
        assert all(module.training for module in lm.modules())
        assert not any(module.training for module in lm.tokenizer.modules())


def test_sentences_of_shapes_are_had_without_rendering(monkeypatch):
    dataset = ShapesDataset(preset("mini"))
    items = dataset.__getitems__([0, 1])
    monkeypatch.setattr("pyramid.data.shapes._render", None)
    texts = texts_of(RecodedClips(dataset))
    assert texts[:4] == [item[name] for item in items for name in ("caption", "paraphrase")]
    assert texts[4096 : 4096 + len(items[0]["questions"]) * 2] == [t for pair in items[0]["questions"] for t in pair]


def test_captions_that_are_cut_are_counted(config):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, max_text=8))
    lm = make_lm(config, PyramidTokenizer.from_pretrained(config.tokenizer), ["a red star"])
    with pytest.warns(TextWarning, match=r"1 of 2 captions are cut at max_text=8 tokens, the longest has \d\d"):
        warn_of_cut(["a red star", "something else altogether"], lm)


def test_a_missing_tokenizer_is_named(config, tmp_path):
    with pytest.raises(ValueError, match="expected the folder of a trained tokenizer, got none"):
        train_lm(load(TrainLMConfig), tmp_path / "lm")
    broken = load(TrainLMConfig, overrides=[f"tokenizer={tmp_path / 'none'}"])
    with pytest.raises(FileNotFoundError, match="expected a folder with config.json"):
        train_lm(broken, tmp_path / "lm")
    with pytest.raises(FileNotFoundError, match="expected a checkpoint, found no file"):
        train_lm(config, tmp_path / "lm", resume=True)


def test_the_gates_are_climbed_or_named(config):
    passed = []
    small = dataclasses.replace(config, run=dataclasses.replace(config.run, learning_rate=8e-3))
    gates = LMGateConfig(one_accuracy=0.9, one_steps=200, sixteen_accuracy=0.01, sixteen_steps=25)
    check_gates(dataclasses.replace(small, gates=gates), passed.append)
    assert [gate.name for gate in passed] == ["one clip by heart", "sixteen clips by heart"]
    assert "of the tokens and" in passed[0].found
    hopeless = LMGateConfig(one_accuracy=0.99, one_steps=2)
    with pytest.raises(GateError, match=r"one clip by heart: expected at least 99% of the tokens after 2 steps, got"):
        check_gates(dataclasses.replace(small, gates=hopeless), passed.append)
