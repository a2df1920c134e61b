from __future__ import annotations

import numpy as np
import pytest
import torch
from made_clips import write_timed

from pyramid.data.video import read_clip, write_video
from tasks.clips import Spread, rate_varies, read_spread, stream_chunks


def numbered(count: int) -> list[np.ndarray]:
    return [np.full((8, 8, 3), i, np.uint8) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 143, 144, 145, 1000])
def test_a_spread_has_both_ends_is_even_and_keeps_little(count):
    spread = Spread(72)
    for frame in numbered(count) if count < 256 else (np.full((1, 1, 3), i, np.int64) for i in range(count)):
        spread.add(frame)
    picked = [int(frame.flat[0]) for frame in spread.pick(9)]
    wanted = np.linspace(0, count - 1, 9).round()
    assert picked[0] == 0
    assert picked[-1] == count - 1
    assert np.abs(np.array(picked) - wanted).max() <= count // 144
    assert len(spread._frames) <= 144


def test_a_clip_of_the_right_length_and_size_comes_as_it_is(tmp_path):
    frames = list(np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8))
    write_video(tmp_path / "x.mkv", frames, fps=8)
    video, count = read_spread(tmp_path / "x.mkv", 9, (32, 32))
    assert count == 9
    assert torch.equal(video[0], read_clip(tmp_path / "x.mkv"))


@pytest.mark.parametrize(("count", "lengths"), [(1, [1]), (2, [1, 1]), (9, [1, 8]), (12, [1, 8, 3])])
def test_chunks_are_the_first_frame_then_runs(tmp_path, count, lengths):
    write_video(tmp_path / "x.mkv", numbered(count), fps=8)
    chunks = list(stream_chunks(tmp_path / "x.mkv", 8))
    assert [chunk.shape[2] for chunk in chunks] == lengths
    assert torch.equal(torch.cat(chunks, dim=2)[0], read_clip(tmp_path / "x.mkv"))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("times", "varies"), [([0], False), ([0, 33, 67, 100, 133], False), ([0, 33, 67, 100, 900, 933], True)]
)
def test_a_rate_that_varies_is_noticed(tmp_path, suffix, times, varies):
    write_timed(tmp_path / f"x{suffix}", times)
    assert rate_varies(tmp_path / f"x{suffix}") == varies


def test_a_clip_without_time_stamps_has_one_rate(tmp_path):
    write_timed(tmp_path / "x.h264", [0, 40, 80])
    assert not rate_varies(tmp_path / "x.h264")
