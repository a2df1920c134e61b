"""Awkward and broken files, and the development clips: right frames or one clear line.

The files lie beside the repository and are not part of it; without them these tests are skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from pyramid.data.folder import FolderDataset
from pyramid.data.video import VideoError, VideoWarning, iter_frames, probe, read_clip

REPOSITORY = Path(__file__).parents[3]
DATA = REPOSITORY / "../shared/data"

pytestmark = pytest.mark.skipif(not (DATA / "nasty/manifest.jsonl").is_file(), reason="needs ../shared/data")

# The manifest gives the size before rotation.
TURNED = {"video_90.mov": (320, 568), "video_270.mov": (320, 568)}
DAMAGED = {"bit_flipped.mp4", "corrupted_decord.mp4", "truncated_60pct_moov_first.mp4", "Error_I_P.264"}
WHY_NOT = {
    "audio_only.m4a": r"only sound \(aac\)",
    "audio_only_named.mp4": r"only sound \(aac\)",
    "empty_0_bytes.mp4": r"it is empty \(0 bytes\)",
    "git_lfs_pointer.mp4": "got a Git LFS pointer",
    "header_only_40_bytes.mp4": "no stream at all",
    "random_bytes.mp4": "20000 bytes that FFmpeg does not read",
    "text_renamed.mp4": "got text",
    "truncated.jpg": "got none from its mjpeg stream of 100x100",
    "truncated_no_moov.mp4": "MP4 or MOV without its index",
    "zero_frames.mkv": "562 bytes that FFmpeg does not read",
    "zero_frames.mp4": "no stream at all",
}


def rows(name: str) -> list[dict]:
    path = DATA / name
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()] if path.is_file() else []


def title(row: dict) -> str:
    return Path(row["path"]).name


@pytest.mark.parametrize("row", rows("nasty/manifest.jsonl"), ids=title)
def test_each_nasty_file(row, tmp_path):
    path, wanted = DATA / row["path"], row["ffmpeg_5_1_reads"]
    if not wanted["frames"]:
        for read in (probe, read_clip, lambda path: list(iter_frames(path, fps=4, size=(8, 8)))):
            with pytest.raises(VideoError, match=WHY_NOT[path.name]) as caught:
                read(path)
            assert str(caught.value).startswith(f"{path}: expected") and "\n" not in str(caught.value)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = list(iter_frames(path))
        small = list(iter_frames(path, fps=4, size=(12, 20), fit="pad", max_frames=5))
    width, height = TURNED.get(path.name, (wanted["width"], wanted["height"]))
    assert len(frames) == wanted["frames"]
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((height, width, 3), "uint8")}
    assert 1 <= len(small) <= 5 and {frame.shape for frame in small} == {(12, 20, 3)}
    told = [str(warning.message) for warning in caught if issubclass(warning.category, VideoWarning)]
    assert bool(told) == (path.name in DAMAGED)
    assert all(line.startswith(f"{path}: read ") and "\n" not in line for line in told)
    info = probe(path)
    assert (info.width, info.height, info.codec) == (width, height, wanted["video_codec"])
    assert info.has_audio == (wanted["audio"] is not None)
    assert info.frames in (None, wanted["frames"]) or path.name in DAMAGED


def test_every_refusal_has_its_reason():
    unread = {title(row) for row in rows("nasty/manifest.jsonl") if not row["ffmpeg_5_1_reads"]["frames"]}
    assert unread == set(WHY_NOT)


def test_no_noise_on_the_standard_streams():
    code = (
        "import sys, warnings; from pyramid.data.video import VideoError, iter_frames\n"
        "warnings.simplefilter('ignore')\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        list(iter_frames(path))\n    except VideoError:\n        pass\n"
    )
    paths = [str(DATA / row["path"]) for row in rows("nasty/manifest.jsonl") if row["bytes"] < 120_000]
    done = subprocess.run([sys.executable, "-c", code, *paths], cwd=REPOSITORY, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_nasty_folder_as_a_data_set():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        dataset = FolderDataset(DATA / "nasty", num_frames=2, size=(8, 8), fps=2, crop="center")
        items = [dataset[index] for index in range(len(dataset))]
    assert all(item["video"].shape == (3, 2, 8, 8) for item in items)
    assert dataset.num_broken == len([name for name in WHY_NOT if not name.endswith(".m4a")])


@pytest.mark.parametrize("row", [row for row in rows("manifest.jsonl") if row["subset"] != "panda"][::40], ids=title)
def test_development_clips(row):
    info = probe(DATA / row["path"])
    assert (info.width, info.height, info.codec) == (row["width"], row["height"], row["video_codec"])
    assert info.frames in (None, row["frames"])
    num_frames = sum(1 for _ in iter_frames(DATA / row["path"], max_frames=100))
    assert num_frames == min(100, row["frames"])


def test_the_manifest_is_a_data_set():
    dataset = FolderDataset(DATA, 4, (24, 40), fps=4, policy="raise", split="val", metadata=DATA / "manifest.jsonl")
    item = dataset[0]
    assert len(dataset) > 80 and item["video"].shape == (3, 4, 24, 40) and item["caption"] and item["label"]
