"""`pyramid reconstruct` takes no more memory for a long clip than for a short one (the full measure, ten minutes of
720p: benchmarks/reconstruct_memory.py)."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from pyramid.data.video import write_video
from pyramid.quantize import LevelConfig
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig
from tasks import cli, reconstruct

HEIGHT, WIDTH = 96, 160


def frames(count):
    ramp = np.broadcast_to(np.linspace(30, 220, WIDTH, dtype=np.uint8)[None, :, None], (HEIGHT, WIDTH, 3))
    return (np.roll(ramp, 3 * index, axis=1) for index in range(count))


# A process starts with the peak of the one that made it, so a small one stands between.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_kib(clip, model, out):
    command = [sys.executable, "-m", "tasks.cli", "reconstruct", clip, "-m", model, "-o", out, "--overwrite"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    measured = [sys.executable, "-c", MEASURE, *map(str, command)]
    root = Path(__file__).parents[2]
    return int(subprocess.run(measured, check=True, capture_output=True, env=environment, cwd=root).stdout)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    levels = (LevelConfig("bits", 1, 4, 4, bits=4),)
    config = TokenizerConfig(channels=(4, 4, 8), depths=(0, 1, 0), dim=8, depth=1, latent_dim=8, levels=levels)
    folder = tmp_path_factory.mktemp("model")
    PyramidTokenizer(config).save_pretrained(folder)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are counted in KiB on Linux")
def test_memory_does_not_grow_with_the_clip(model, tmp_path):
    for count in (401, 1201):  # beyond what libx264 looks ahead and the allocator settles at
        write_video(tmp_path / f"{count}.mp4", frames(count))
    short = peak_kib(tmp_path / "401.mp4", model, tmp_path / "out.mp4")
    decoded = 800 * HEIGHT * WIDTH * 3 * 4 / 1024
    assert decoded > 0.2 * short  # holding the frames would show
    assert peak_kib(tmp_path / "1201.mp4", model, tmp_path / "out.mp4") <= 1.1 * short


def test_chunks_that_are_done_with_are_let_go(model):
    tokenizer = PyramidTokenizer.from_pretrained(model)
    alive, most = weakref.WeakSet(), 0

    def chunks():
        for index in range(12):
            chunk = torch.zeros(1, 3, 8 if index else 1, HEIGHT, WIDTH)
            alive.add(chunk)
            yield chunk

    for original, _, decoded in reconstruct._roundtrip(tokenizer, chunks(), [1], None):
        alive.add(decoded[1])
        most = max(most, len(alive))
        del original, decoded
    assert most <= 4  # this chunk and the one before it, as they came and as they were decoded


def test_tiles_change_nothing(model, tmp_path, capsys):
    write_video(tmp_path / "clip.mp4", frames(3))
    records = []
    for name, tile in (("whole", []), ("tiles", ["--tile", "40"])):
        command = ["reconstruct", str(tmp_path / "clip.mp4"), "-m", str(model), "-o", str(tmp_path / name), "--json"]
        assert cli.main([*command, *tile]) == 0
        records.append(json.loads(capsys.readouterr().out))
    assert records[0]["psnr"] == pytest.approx(records[1]["psnr"], abs=0.01)
    assert cli.main([*command, "--tile", "4", "--overwrite"]) == 2
    assert "tile must be at least the stride of 8 pixels, got 4" in capsys.readouterr().err
