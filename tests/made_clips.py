"""Small clips with contents that can be recognised after a codec, for the tests of reading and writing."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from pyramid.data.video import iter_frames


def numbered(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (T, H, W, 3): frame i is one shade of grey, 6 i, which any codec keeps to a level or two."""
    shades = (6 * np.arange(num_frames)).astype(np.uint8)
    return np.broadcast_to(shades[:, None, None, None], (num_frames, height, width, 3)).copy()


def number(frame: np.ndarray) -> int:
    return round(float(frame.mean()) / 6)


def numbers(path, **options) -> list[int]:
    return [number(frame) for frame in iter_frames(path, **options)]


def quarters(height: int = 40, width: int = 60) -> np.ndarray:
    """uint8 (H, W, 3): red, green, blue, white quarters, in reading order."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2, : width // 2] = (255, 0, 0)
    frame[: height // 2, width // 2 :] = (0, 255, 0)
    frame[height // 2 :, : width // 2] = (0, 0, 255)
    frame[height // 2 :, width // 2 :] = (255, 255, 255)
    return frame


def corners(frame: np.ndarray) -> str:
    """The colours of the four quarters, in reading order."""
    height, width = frame.shape[:2]
    names = {(255, 0, 0): "r", (0, 255, 0): "g", (0, 0, 255): "b", (255, 255, 255): "w", (0, 0, 0): "k"}
    out = ""
    for y in (height // 4, 3 * height // 4):
        for x in (width // 4, 3 * width // 4):
            out += names[tuple(int(value > 127) * 255 for value in frame[y, x])]
    return out


def write_timed(path, times_ms: list[int], *, pix_fmt="yuv420p", codec="libx264", frames=None, **stream_fields) -> None:
    """A file with frame i at times_ms[i]."""
    frames = numbered(len(times_ms)) if frames is None else frames
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        for name, value in stream_fields.items():
            setattr(stream.codec_context, name, value)
        stream.codec_context.time_base = Fraction(1, 1000)
        for array, time in zip(frames, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def set_display_matrix(path, matrix: tuple[int, int, int, int]) -> None:
    """Writes (a, b, c, d) into the track header of an MP4."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of fields
    a, b, c, d = (value * 65536 for value in matrix)
    data[at : at + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(data)
