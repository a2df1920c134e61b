"""Reading video files: sampling in time, what frames look like, what cannot be read. On small files made here."""

from __future__ import annotations

import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from made_clips import corners, number, numbered, numbers, quarters, set_display_matrix, write_timed
from PIL import Image

from pyramid.data import container, video
from pyramid.data.transforms import resize_frame, sample_times
from pyramid.data.video import VideoError, VideoWarning, iter_frames, probe, read_clip, to_uint8, write_video

# Time


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".gif"])
@pytest.mark.parametrize("rate", [10, 25, 30])
def test_native_rate_gives_each_frame_once(tmp_path, suffix, rate):
    rate = 20 if (suffix, rate) == (".gif", 30) else rate  # a GIF counts hundredths
    write_video(tmp_path / f"a{suffix}", numbered(20), fps=rate)
    assert numbers(tmp_path / f"a{suffix}", fps=rate) == list(range(20))


def test_slower_and_faster_rates(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(12), fps=12)
    assert numbers(tmp_path / "a.mp4", fps=4) == [0, 3, 6, 9]
    assert numbers(tmp_path / "a.mp4", fps=24) == [i // 2 for i in range(24)]
    assert numbers(tmp_path / "a.mp4", fps=8) == [0, 1, 3, 4, 6, 7, 9, 10]
    assert numbers(tmp_path / "a.mp4", fps=4, start=0.5) == [6, 9]
    assert numbers(tmp_path / "a.mp4", start=0.5) == [6, 7, 8, 9, 10, 11]
    assert numbers(tmp_path / "a.mp4", max_frames=3) == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate(tmp_path, suffix):
    write_timed(tmp_path / f"a{suffix}", [0, 100, 1000, 1100, 1200, 3000])
    assert numbers(tmp_path / f"a{suffix}") == [0, 1, 2, 3, 4, 5]
    assert numbers(tmp_path / f"a{suffix}", fps=2)[:6] == [0, 1, 2, 4, 4, 4]
    assert numbers(tmp_path / f"a{suffix}", fps=2)[6] == 5


def test_a_start_time_far_from_zero_is_the_origin(tmp_path):
    write_timed(tmp_path / "late.mkv", [100_000 + 100 * i for i in range(10)])
    assert numbers(tmp_path / "late.mkv", fps=5) == [0, 2, 4, 6, 8]
    assert numbers(tmp_path / "late.mkv", fps=5, start=0.4) == [4, 6, 8]
    assert probe(tmp_path / "late.mkv").seconds == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_seeking_gives_the_frames_that_reading_on_gives(tmp_path, suffix):
    frames = np.random.default_rng(0).integers(0, 256, (60, 2, 3, 3), dtype=np.uint8)
    frames = frames.repeat(16, axis=1).repeat(16, axis=2)
    write_video(tmp_path / f"a{suffix}", frames, fps=10)
    whole = list(iter_frames(tmp_path / f"a{suffix}"))
    for first in (25, 31, 40, 59):
        part = list(iter_frames(tmp_path / f"a{suffix}", start=first / 10))
        assert len(part) == 60 - first and np.array_equal(part[0], whole[first])


def test_a_start_past_the_end_says_so(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(8), fps=8)
    for start in (1.0, 1.5, 50.0):
        with pytest.raises(
            VideoError, match=f"a.mp4: expected frames from {start:g} s on, but the video ends at 1.00 s"
        ):
            list(iter_frames(tmp_path / "a.mp4", start=start))


def test_a_raw_stream_uses_the_nominal_rate(tmp_path):
    path = tmp_path / "a.264"
    write_timed(path, [40 * i for i in range(10)])
    assert numbers(path, fps=5) == [0, 5]
    assert numbers(path, start=0.2) == [5, 6, 7, 8, 9]
    info = probe(path)
    assert (info.fps, info.frames, info.seconds) == (25.0, None, None)


def test_sample_times_is_the_last_frame_at_or_before():
    times = [0.0, 0.1, 0.5, 0.55, 1.2]
    frames = [(time, 0.3, index) for index, time in enumerate(times)]
    for fps in (0.5, 1, 3, 7.3, 100):
        wanted = [max(i for i, t in enumerate(times) if t <= k / fps) for k in range(1000) if k / fps < 1.5]
        assert list(sample_times(frames, fps)) == wanted
    assert list(sample_times([], 5)) == []


# What frames look like


@pytest.mark.parametrize(
    "matrix, wanted",
    [
        ((1, 0, 0, 1), "rgbw"),
        ((0, 1, -1, 0), "brwg"),  # clockwise
        ((-1, 0, 0, -1), "wbgr"),
        ((0, -1, 1, 0), "gwrb"),  # counter-clockwise
        ((-1, 0, 0, 1), "grwb"),  # mirrored
        ((0, 1, 1, 0), "rbgw"),  # transposed
    ],
)
def test_the_display_matrix_is_applied(tmp_path, matrix, wanted):
    path = tmp_path / "a.mp4"
    write_video(path, [quarters()] * 2)
    set_display_matrix(path, matrix)
    frame = next(iter_frames(path))
    info = probe(path)
    assert corners(frame) == wanted
    assert frame.shape == (info.height, info.width, 3) == ((60, 40, 3) if matrix[0] == 0 else (40, 60, 3))
    assert corners(next(iter_frames(path, size=(20, 20), fit="stretch"))) == wanted


def test_exif_rotation_of_a_photo(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turn clockwise to display
    Image.fromarray(quarters()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    (frame,) = iter_frames(tmp_path / "a.jpg")
    assert frame.shape == (60, 40, 3) and corners(frame) == "brwg"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".gif"])
def test_a_picture_is_a_clip_of_one_frame_at_any_rate(tmp_path, suffix):
    path = tmp_path / f"p%03d{suffix}"  # never taken for a pattern
    Image.fromarray(quarters()).save(path)
    path = path.rename(tmp_path / "%02d.mp4")  # nor judged by its suffix
    for fps in (None, 1, 24, 1000):
        assert [corners(frame) for frame in iter_frames(path, fps=fps)] == ["rgbw"]
    assert (probe(path).frames, probe(path).seconds) == (1, None)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_goes_over_black(tmp_path, mode):
    grey = Image.new("L", (8, 8), 200)
    picture = Image.merge("RGBA", [grey] * 3 + [Image.new("L", (8, 8), 51)])
    if mode != "RGBA":
        picture = picture.convert("LA") if mode == "LA" else picture.quantize(4)
    picture.save(tmp_path / "a.png")
    (frame,) = iter_frames(tmp_path / "a.png")
    assert np.abs(frame.astype(int) - 40).max() <= 1


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv444p", "gray", "yuvj420p"])
def test_depths_and_subsamplings(tmp_path, pix_fmt):
    full = 2 if pix_fmt in ("gray", "yuvj420p") else 1
    write_timed(tmp_path / "a.mkv", [0, 40, 80], pix_fmt=pix_fmt, frames=numbered(20)[::7][:3], color_range=full)
    assert [round(float(frame.mean())) for frame in iter_frames(tmp_path / "a.mkv")] == pytest.approx(
        [0, 42, 84], abs=2
    )


def test_pixel_aspect_is_told_and_used_when_resizing(tmp_path):
    frames = np.zeros((2, 40, 40, 3), np.uint8)
    frames[:, 10:30, 10:30] = 255
    write_timed(tmp_path / "a.mkv", [0, 40], frames=frames, sample_aspect_ratio=Fraction(2, 1))
    assert probe(tmp_path / "a.mkv").pixel_aspect == 2.0
    assert next(iter_frames(tmp_path / "a.mkv")).shape == (40, 40, 3)
    padded = next(iter_frames(tmp_path / "a.mkv", size=(80, 80), fit="pad"))[..., 0] > 127
    assert padded.any(axis=0).sum() == 40 and padded.any(axis=1).sum() == 20


@pytest.mark.parametrize("size", [(8, 8), (30, 20), (64, 128), (1, 1), (7, 301)])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("source", [(40, 60), (1, 1), (5, 700), (700, 5)])
def test_resize_gives_the_size(size, fit, source):
    frame = np.full((*source, 3), 200, np.uint8)
    out = resize_frame(frame, size, fit)
    assert out.shape == (*size, 3) and out.dtype == np.uint8 and out.max() == 200
    assert (out.min() == 200) or fit == "pad"


def test_crop_is_central_and_pad_keeps_all():
    frame = np.zeros((10, 30, 3), np.uint8)
    frame[:, 10:20] = 255
    assert resize_frame(frame, (10, 10), "crop").min() == 255
    padded = resize_frame(frame, (30, 30), "pad")
    assert padded[:10].max() == 0 and padded[20:].max() == 0 and np.array_equal(padded[10:20], frame)
    assert resize_frame(frame, (10, 30)) is frame


def test_read_clip(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(8), fps=8)
    clip = read_clip(tmp_path / "a.mp4", num_frames=5, size=(16, 24))
    assert clip.shape == (3, 5, 16, 24) and clip.dtype == torch.float32 and clip.is_contiguous()
    assert [number(frame) for frame in to_uint8(clip).numpy()] == [0, 1, 2, 3, 4]
    assert read_clip(tmp_path / "a.mp4", num_frames=50).shape[1] == 8


# What cannot be read


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"it is empty \(0 bytes\)"),
        (b"hello\n", "got text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
        (bytes(range(256)) * 8, "2048 bytes that FFmpeg does not read"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "got"),
    ],
)
def test_what_is_no_video_ends_in_one_line(tmp_path, content, message):
    path = tmp_path / "a clip, é.mp4"
    path.write_bytes(content)
    for read in (probe, read_clip, lambda path: list(iter_frames(path))):
        with pytest.raises(VideoError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: expected") and "\n" not in str(caught.value)


def test_missing_and_folder(tmp_path):
    with pytest.raises(VideoError, match="nothing is there"):
        probe(tmp_path / "no.mp4")
    with pytest.raises(VideoError, match="got a folder"):
        read_clip(tmp_path)


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.m4a"), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.rate = 16000
        out.mux(stream.encode(samples))
        out.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"expected a video stream, got only sound \(aac\)"):
        probe(tmp_path / "a.m4a")


def test_a_clip_without_its_index(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(10))
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: data.index(b"moov") - 4])
    with pytest.raises(VideoError, match="without its index"):
        probe(tmp_path / "a.mp4")


def test_a_clip_cut_short_gives_what_there_is_and_warns(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mkv", frames, fps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(iter_frames(tmp_path / "a.mkv"))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) // 2])
    with pytest.warns(VideoWarning, match=r"a.mkv: read 1\d frames, but") as caught:
        read = list(iter_frames(tmp_path / "a.mkv"))
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert 12 <= len(read) <= 16 and np.array_equal(read[3], frames[3])


def test_too_large_a_frame_is_refused_before_decoding(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", numbered(2))
    monkeypatch.setattr(container, "MAX_PIXELS", 1000)
    with pytest.raises(VideoError, match="expected frames of at most 1000 pixels, got 64x48"):
        probe(tmp_path / "a.mp4")


def test_too_long_a_clip_is_refused_in_time(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", numbered(20))
    monkeypatch.setattr(video, "MAX_CLIP_BYTES", 10 * 48 * 64 * 3 * 4)
    with pytest.raises(VideoError, match="at most 10 frames of 64x48"):
        read_clip(tmp_path / "a.mp4")
    assert read_clip(tmp_path / "a.mp4", num_frames=10).shape[1] == 10


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fps": 0}, "fps must be positive, got 0"),
        ({"fps": float("nan")}, "fps must be positive, got nan"),
        ({"fit": "zoom"}, "fit must be one of crop, pad, stretch, got 'zoom'"),
        ({"size": (0, 4)}, r"size must be \(height, width\), both at least 1, got \(0, 4\)"),
        ({"max_frames": 0}, "max_frames must be at least 1, got 0"),
        ({"start": -1}, "start must be 0 or more seconds, got -1"),
    ],
)
def test_bad_arguments_raise_at_the_call(options, message):
    with pytest.raises(ValueError, match=message):
        iter_frames("whatever.mp4", **options)


def test_leaving_early_is_quiet(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(40), fps=10)
    stream = iter_frames(tmp_path / "a.mp4")
    next(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream.close()  # leaving early is no fault of the file
