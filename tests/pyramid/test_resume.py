"""A run that was killed, and killed again, ends where an uninterrupted one ends: weights, averages, statistics, bit for
bit."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch
from safetensors.torch import load_file

from pyramid.train import train_tokenizer


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train_until_killed(out, step, where, resume):
    """In a process of its own, which SIGKILL ends."""
    script = Path(tiny_run.__file__)
    path = os.pathsep.join([str(script.parents[1]), str(script.parent)])
    process = subprocess.run(
        [sys.executable, str(script), str(out), str(step), where, resume],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr


def checkpoint(out):
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def figures(path):
    with open(path, newline="") as file:
        return {int(row["step"]): row for row in csv.DictReader(file) if row.get("train/loss")}


def differences(a, b, path=""):
    """Paths at which two nested states differ."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        return [found for key in a for found in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple):
        assert len(a) == len(b), path
        return [found for i, pair in enumerate(zip(a, b, strict=True)) for found in differences(*pair, f"{path}/{i}")]
    return [] if a == b else [path]


def test_killed_and_resumed_equals_uninterrupted(tmp_path, one_thread):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    train_until_killed(killed, 5, "step", "begin")  # an epoch has three steps: from within the second
    assert checkpoint(killed)["step"] == 4
    train_until_killed(killed, 8, "save", "resume")
    assert checkpoint(killed)["step"] == 6  # the last that is whole, at the end of an epoch
    assert len(list((killed / "checkpoints").iterdir())) == 2  # and half of another
    train_tokenizer(tiny_run.config(), killed, resume=True)
    train_tokenizer(tiny_run.config(), whole)

    assert [path.name for path in (killed / "checkpoints").iterdir()] == ["last.ckpt"]
    assert differences(*(load_file(out / "model.safetensors") for out in (killed, whole))) == []
    ends = [checkpoint(out) for out in (killed, whole)]
    for end in ends:
        assert end["step"] == 9 and end["averaging_state"]["n_averaged"] == 9
        assert end["global_step"] == 9 + 8  # Lightning's count, of both optimizers
    for name in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "usage", "watch"):
        assert differences(*(end[name] for end in ends)) == []
    rest, all_of_it = (figures(out / "metrics.csv") for out in (killed, whole))
    assert sorted(rest) == [6, 7, 8] and sorted(all_of_it) == list(range(9))
    assert all(rest[step] == all_of_it[step] for step in rest)
    assert sorted(figures(killed / "metrics.1.csv")) == [0, 1, 2, 3, 4][: len(figures(killed / "metrics.1.csv"))]
