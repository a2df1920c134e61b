"""Writing video files, uint8 <-> float, contact sheets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_clips import numbered, quarters
from PIL import Image

from pyramid.data.video import VideoWriter, contact_sheet, from_uint8, iter_frames, probe, to_uint8, write_video


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v", ".webm", ".mkv", ".gif"])
@pytest.mark.parametrize("size", [(48, 64), (47, 63), (2, 2), (1, 1), (8, 700)])
def test_each_format_keeps_size_and_frames(tmp_path, suffix, size):
    path = tmp_path / f"clip{suffix}"
    frames = numbered(5, *size)
    write_video(path, from_uint8(frames), fps=10)
    read = np.stack(list(iter_frames(path)))
    assert read.shape == frames.shape
    assert np.abs(read.astype(int) - frames).max() <= (0 if suffix == ".mkv" else 3)
    info = probe(path)
    assert (info.width, info.height, info.fps) == (size[1], size[0], 10.0)
    assert info.seconds == pytest.approx(0.5, abs=0.011) and not info.has_audio


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".gif", ".png"])
def test_colours_survive(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    write_video(path, [quarters()])
    (frame,) = iter_frames(path)
    centres = frame[10::20, 15::30].astype(int)
    assert np.abs(centres - quarters()[10::20, 15::30]).max() <= 6


def test_conversion_has_no_bias(tmp_path):
    y, x = np.mgrid[:90, :160]
    ramp = np.stack([x * 255 / 159, y * 255 / 89, (x + y) * 255 / 248], axis=-1).round().astype(np.uint8)
    write_video(tmp_path / "ramp.mp4", [ramp] * 2)
    difference = next(iter_frames(tmp_path / "ramp.mp4")).astype(int) - ramp
    assert np.abs(difference.mean(axis=(0, 1))).max() < 0.3


def test_mkv_is_lossless_and_a_png_of_one_frame_is_the_picture(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 17, 23, 3), dtype=np.uint8)
    write_video(tmp_path / "noise.mkv", frames)
    assert np.array_equal(np.stack(list(iter_frames(tmp_path / "noise.mkv"))), frames)
    write_video(tmp_path / "noise.png", frames[:1])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "noise.png")), frames[0])


def test_png_of_a_long_clip_is_a_bounded_sheet(tmp_path):
    with VideoWriter(tmp_path / "sheet.png") as writer:
        for frame in np.zeros((1000, 4, 4, 3), np.uint8):
            writer.write(frame)
            assert len(writer._sheet) <= 128
    assert Image.open(tmp_path / "sheet.png").size == (8 * 64 + 9 * 4, 8 * 64 + 9 * 4)


def test_float_and_uint8_are_exact_inverses():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, -1, -1, 3)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert torch.equal(to_uint8(from_uint8(levels).to(torch.float64)), levels)
    assert to_uint8(torch.tensor([-3.0, -1.0, -0.9999, 0.0, 1.0, 3.0]).expand(3, 1, 1, 6))[0, 0, :, 0].tolist() == [
        0,
        0,
        0,
        128,
        255,
        255,
    ]
    with pytest.raises(ValueError, match="got 3 NaN"):
        to_uint8(torch.full((3, 1, 1, 1), float("nan")))
    with pytest.raises(
        ValueError, match=r"expected a float tensor \(3, T, H, W\), got torch.float32 \(1, 3, 2, 4, 4\)"
    ):
        to_uint8(torch.zeros(1, 3, 2, 4, 4))
    with pytest.raises(ValueError, match="expected uint8 frames"):
        from_uint8(np.zeros((1, 2, 2, 3), np.float32))


def test_nothing_is_overwritten_unless_told(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="a.mp4: exists already"):
        write_video(path, numbered(2))
    assert path.read_text() == "precious"
    write_video(path, numbered(2), overwrite=True)
    assert probe(path).frames == 2


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png", ".mkv"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind(tmp_path, suffix, error):
    def frames():
        yield from numbered(3)
        raise error

    with pytest.raises(error):
        write_video(tmp_path / f"a{suffix}", frames())
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_old_file(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(2))
    with pytest.raises(ValueError, match=r"expected frames of one size \(48, 64, 3\), got \(48, 62, 3\)"):
        write_video(tmp_path / "a.mp4", [*numbered(1), *numbered(1, 48, 62)], overwrite=True)
    assert probe(tmp_path / "a.mp4").frames == 2 and len(list(tmp_path.iterdir())) == 1


def test_a_name_taken_meanwhile_is_kept(tmp_path):
    with pytest.raises(FileExistsError), VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(numbered(1)[0])
        (tmp_path / "a.mp4").write_text("precious")
    assert (tmp_path / "a.mp4").read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


def test_the_file_appears_only_when_complete(tmp_path):
    with VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(numbered(1)[0])
        assert not (tmp_path / "a.mp4").exists()
    writer.close()  # again: nothing
    with pytest.raises(ValueError, match="expected an open writer"):
        writer.write(numbered(1)[0])


def test_bad_calls_of_the_writer(tmp_path):
    frame = numbered(1)[0]
    with pytest.raises(ValueError, match="expected a name that ends in .mp4, .* got .txt"):
        VideoWriter(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match="folder .* does not exist"):
        VideoWriter(tmp_path / "no" / "a.mp4")
    for suffix, fps, bounds in (
        (".gif", 60, "0.002 to 50"),
        (".gif", 0.001, "0.002 to 50"),
        (".mp4", 4e-4, "0.001 to"),
    ):
        with pytest.raises(ValueError, match=f"fps must be from {bounds}.* for {suffix}, got {fps}"):
            VideoWriter(tmp_path / f"a{suffix}", fps=fps)
    with pytest.raises(ValueError, match="expected at least one frame"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(ValueError, match=r"expected frames as uint8 \(H, W, 3\), got float32"):
        write_video(tmp_path / "a.mp4", [frame.astype(np.float32)])
    (tmp_path / "d.mp4").mkdir()
    with pytest.raises(IsADirectoryError):
        write_video(tmp_path / "d.mp4", [frame], overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["d.mp4"]


@pytest.mark.parametrize(("suffix", "fps"), [(".mp4", 0.001), (".webm", 0.001), (".mkv", 1000), (".gif", 0.002)])
def test_the_ends_of_the_rates_are_written(tmp_path, suffix, fps):
    path = tmp_path / f"slow{suffix}"
    write_video(path, numbered(3), fps=fps)
    assert probe(path).fps == pytest.approx(fps)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can write")
@pytest.mark.parametrize("suffix", [".mp4", ".png"])
def test_a_file_that_cannot_be_written_is_named(suffix):
    with pytest.raises(OSError) as caught:
        write_video(f"/proc/x{suffix}", numbered(2))
    assert caught.value.filename == f"/proc/x{suffix}"


def test_importing_needs_no_lightning():
    code = "import sys, pyramid.data.video, pyramid.data.folder; assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Contact sheets


def test_contact_sheet_layout():
    clips = [torch.zeros(3, 3, 64, 100), torch.ones(3, 20, 64, 64), torch.zeros(3, 1, 5, 7)]
    sheet = contact_sheet(clips, ["one", "two\nlines " + "long " * 200, "名前"])
    line, gap = 21, 4
    assert sheet.dtype == np.uint8
    assert sheet.shape == (gap + (64 + line + gap) * 2 + 45 + line + gap, 2 * gap + 8 * 64 + 7 * gap, 3)
    assert contact_sheet(clips[:1]).shape == (64 + 2 * gap, 3 * 100 + 4 * gap, 3)
    assert contact_sheet(clips[:1])[gap, gap].tolist() == [128, 128, 128]


def test_contact_sheet_rejects():
    with pytest.raises(ValueError, match="at least one clip"):
        contact_sheet([])
    with pytest.raises(ValueError, match=r"a label a row \(1\), got 2"):
        contact_sheet([torch.zeros(3, 1, 4, 4)], ["a", "b"])
    with pytest.raises(ValueError, match="at least one frame"):
        contact_sheet([torch.zeros(3, 0, 4, 4)])
