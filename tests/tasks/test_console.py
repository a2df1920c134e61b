"""What a verb says, and whose fault an error is."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from pyramid.data.video import probe
from tasks.console import Console, one_line, user_can_mend
from tasks.files import claim_folder
from tasks.options import parse_details
from tasks.training_progress import TrainingProgress


def test_a_value_error_from_below_us_is_not_the_users():
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("x")  # raised in this frame, which is no module of ours
    assert not user_can_mend(caught.value)
    with pytest.raises(ValueError, match="from 1 to 5") as caught:
        parse_details("9", 5)
    assert user_can_mend(caught.value)
    assert one_line(FileNotFoundError(2, "No such file", "x")) == "x: No such file"


def test_a_long_step_is_heard_of_every_few_seconds(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 5.5, 6.0, 11.0])
    monkeypatch.setattr("tasks.console.time.monotonic", lambda: next(clock))
    console = Console("edit")
    for count, _ in enumerate(console.track("ab", "clip.mkv")):  # begun at 0, asked at 1 and, after the pulses, at 11
        for number in range(3 if count == 0 else 0):
            console.pulse(f"window {number + 1}", 0.0)  # at 4, 5.5 and 6
    assert capsys.readouterr().err.splitlines() == ["window 2 after 6 s", "clip.mkv: 1/2 after 11 s"]


class _Broken:
    """A data set whose items cannot be had."""

    def __init__(self, get):
        self.get = get

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.get()


@pytest.mark.parametrize(
    ("get", "mendable", "line"),
    [
        (lambda: probe("no.mp4"), True, "no.mp4: expected a video file, but nothing is there"),
        (lambda: claim_folder(Path(__file__), False), True, f"{__file__}: expected a folder, found a file"),
        (lambda: Path("no.mp4").read_bytes(), True, "[Errno 2] No such file or directory: 'no.mp4'"),
        (lambda: int("x"), False, "invalid literal for int() with base 10: 'x'"),
    ],
)
def test_an_error_of_a_worker_is_told_as_if_it_were_here(get, mendable, line):
    with pytest.raises((OSError, ValueError)) as caught:
        next(iter(DataLoader(_Broken(get), num_workers=1, multiprocessing_context="fork")))
    assert user_can_mend(caught.value) == mendable
    assert one_line(caught.value) == line


def test_json_keeps_what_libraries_print_off_stdout(capsys):
    with Console("test", as_json=True) as console:
        print("a library talks")
        console.emit({"ok": True, "loss": [math.nan, {"psnr": math.inf}, 1.5]}, "text")
    captured = capsys.readouterr()
    assert captured.out == '{"ok": true, "loss": [null, {"psnr": null}, 1.5]}\n'
    assert captured.err == "a library talks\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_training_emits_records_beside_a_bar_too(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    module = torch.nn.Linear(2, 2)
    module.device, module.step = "cpu", 1
    module.schedule = SimpleNamespace(progress=lambda _: 0.5, run=SimpleNamespace(max_steps=2, max_minutes=0))
    trainer = SimpleNamespace(logged_metrics={"train/loss": torch.tensor(math.nan)})
    with Console("train", as_json=True) as console:
        progress = TrainingProgress(console, "train")
        progress.on_fit_start(trainer, module)
        progress._last -= 60
        progress.on_train_batch_end(trainer, module, None, None, 0)
        progress.on_exception(trainer, module, KeyboardInterrupt())
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (record["step"], record["train/loss"]) == (1, None)
