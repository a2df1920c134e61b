"""The gates before a run, and the forecast."""

import dataclasses
import re
import time

import pytest
import tiny_run
import torch

from pyramid.gates import GateError, _look, _room, check_range
from pyramid.train import TokenizerTraining, check_gates, prepare, train_tokenizer
from pyramid.training import make_trainer
from pyramid.training_forecast import Forecast, measure


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.rand(4, 3, 2, 8, 8) * 255, r"expected pixels in \[-1, 1\], got values from \d"),
        (torch.rand(4, 3, 2, 8, 8), r"which looks like \[0, 1\]"),
        (torch.full((4, 3, 2, 8, 8), torch.nan), "got values from nan to nan"),
        (torch.full((4, 3, 2, 8, 8), -0.5), "expected clips that show something"),
    ],
)
def test_clips_out_of_range_are_refused(video, message):
    with pytest.raises(GateError, match=message):
        check_range(video)
    assert check_range(torch.rand(4, 3, 2, 8, 8) * 2 - 1).name == "input range"


def gates(*overrides):
    passed = []
    return passed, lambda: check_gates(tiny_run.config("gates.words=0", *overrides), passed.append)


def test_a_model_that_learns_passes():
    passed, check = gates("gates.one_psnr=19", "gates.sixteen_psnr=13", "gates.one_steps=200", "data.num_clips=20")
    check()
    assert [gate.name for gate in passed] == ["input range", "one clip by heart", "sixteen clips by heart"]
    for gate in passed[1:]:
        assert re.fullmatch(r"\d+\.\d dB and \d+% of the words after \d+ steps, \d+ dB expected", gate.found)


def test_a_model_that_does_not_learn_is_stopped():
    passed, check = gates("run.learning_rate=1e-9", "gates.one_steps=40")
    with pytest.raises(GateError, match="one clip by heart: expected at least 30 dB and 0% .* after 40 steps"):
        check()
    assert [gate.name for gate in passed] == ["input range"]


def test_words_without_a_place_are_not_asked_for():
    module, data = prepare(tiny_run.config())
    captions = ["red star", "red", "", "red star circle square left right small large"]  # one word has a place
    tokens = module.tokenizer.encode(torch.zeros(4, 3, 5, 16, 16))
    room = [_room(module.tokenizer, tokens, caption) for caption in captions]
    assert room == [1 / 2, 1, 0, 1 / 8]
    named = "red star circle square left right small large"
    batch = {"video": torch.rand(1, 3, 5, 16, 16) * 2 - 1, "caption": [named]}
    module.words_hit = lambda tokens, captions: [1 / 8]  # all that can be
    assert _look(module, [batch, batch])[1] == 1.0


def test_a_loss_that_is_no_number_is_told(monkeypatch):
    monkeypatch.setattr(TokenizerTraining, "objective", lambda self, batch: torch.tensor(torch.nan))
    with pytest.raises(GateError, match="expected a loss that is a number, got nan in step 1"):
        gates()[1]()


def test_the_forecast_comes_true(tmp_path):
    """Loosely: the machine has other work too."""
    heard = []
    config = tiny_run.config("run.max_steps=30", "run.val_every=10", "run.checkpoint_every=100")
    begun = []

    def hear(forecast):
        heard.append(forecast)
        begun.append(time.monotonic())

    train_tokenizer(config, tmp_path, forecast=hear)
    took = (time.monotonic() - begun[0]) / 60
    (forecast,) = heard
    assert took / 4 < forecast.minutes < took * 4
    assert (forecast.steps, forecast.clips) == (30, 120)
    assert forecast.tokens == 120 * 2 * (1 + 4 + 16 + 16)
    assert 2**26 < forecast.memory < 2**36
    assert forecast.sentence().startswith("forecast: ") and "30 steps" in forecast.sentence()


def test_forecasting_leaves_the_run_alone():
    module, data = prepare(tiny_run.config())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    first = measure(module, data, make_trainer)
    assert torch.equal(torch.get_rng_state(), state) and module.step == 0 and data.trainer is not None
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    timed = dataclasses.replace(module.run, max_steps=-1, max_minutes=10)
    module.run = timed
    second = measure(module, data, make_trainer)
    assert second.minutes == pytest.approx(10, rel=0.02)
    assert second.steps == pytest.approx(600 / (second.step_seconds + second.val_seconds / timed.val_every), abs=1.5)
    assert isinstance(first, Forecast) and first.steps == 9
