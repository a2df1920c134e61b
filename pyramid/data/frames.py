"""Reading video: any file that FFmpeg reads -> frames, uint8 (H, W, 3), one at a time, in constant memory.

What a frame looks like is decided here, once:

- *Format* is decided by content, never by suffix. A picture is a clip of one frame; GIF and APNG move.
- *Rotation and mirroring* (the display matrix of a phone's clip, EXIF rotation of a photo) are applied.
- *Colour*: 8-bit full-range RGB from any depth, subsampling and range, with the stream's own matrix (BT.601 where it
  names none, as the ffmpeg program does). Chroma is interpolated: the faster default darkens a picture by one level.
- *Alpha* is composited over black. *Interlaced* frames come as stored, both fields woven.
- *Pixel aspect*: pixels come as stored, `VideoInfo.pixel_aspect` says their shape; when a `size` is asked for, "crop"
  and "pad" work on the shape that a viewer sees ("stretch" on the stored one).
- *A stream that changes size* is brought to the size of its first frame, as the ffmpeg program does.

Damage: what decodes is returned, and one `VideoWarning` at the end names the file, the frames read and the fault. Where
nothing decodes, `VideoError` says so in one line.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation

from pyramid.data.container import (
    VideoError,
    VideoWarning,
    frame_rate,
    is_picture,
    nothing_decoded,
    open_video,
    pixel_aspect,
    stream_seconds,
    video_stream,
)
from pyramid.data.transforms import check_size, resize_frame, sample_times

ACCURATE = (
    Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)
_SEEKABLE = ("mov", "matroska")  # demuxers whose seek lands on the key frame before a time, found by trial


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds. `frames` and `seconds` come from the header, and are None where it does not say."""

    path: str
    width: int  # after rotation
    height: int
    fps: float  # average; nominal where the file has no time stamps
    frames: int | None
    seconds: float | None
    codec: str
    rotation: int  # degrees counter-clockwise that have been applied
    has_audio: bool
    pixel_aspect: float = 1.0  # width of a pixel divided by its height, after rotation


@dataclass
class _Faults:
    """What went wrong while a file was read, for the one warning at the end."""

    packets: int = 0
    damaged: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if not self.notes:
            self.notes.append(text)

    def report(self, path: str, decoded: int) -> None:
        parts = [f"{self.packets} packet(s) could not be decoded"] if self.packets else []
        parts += [f"{self.damaged} frame(s) are damaged"] if self.damaged else []
        parts += self.notes
        if parts:
            warnings.warn(f"{path}: read {decoded} frames, but {'; '.join(parts)}", VideoWarning, stacklevel=3)


def probe(path: str | os.PathLike) -> VideoInfo:
    """Opens a file and decodes its first frame.

    Raises:
        VideoError: what `iter_frames` would raise.
    """
    with open_video(path) as container:
        stream = video_stream(path, container)
        faults = _Faults()
        frame = next(_decoded(container, stream, faults), None)
        if frame is None:
            raise VideoError(nothing_decoded(path, stream, faults.notes))
        turned = _turn_of(frame)[0]
        width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
        return VideoInfo(
            path=os.fspath(path),
            width=width,
            height=height,
            fps=frame_rate(stream),
            frames=1 if is_picture(container, stream) else stream.frames or None,
            seconds=stream_seconds(container, stream),
            codec=stream.codec_context.codec.canonical_name,
            rotation=frame.rotation,
            has_audio=bool(container.streams.audio),
            pixel_aspect=pixel_aspect(stream, turned),
        )


def iter_frames(
    path: str | os.PathLike,
    *,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    fit: str = "crop",
    max_frames: int | None = None,
    start: float = 0.0,
) -> Iterator[np.ndarray]:
    """Streams the frames of a video or picture.

    Args:
        path: a file; what it holds decides, not its suffix.
        fps: frames a second, picked by time stamp (`sample_times`); None gives each stored frame once. A still gives
            one frame at any rate.
        size: (height, width) to resize to; None keeps the size of the first frame.
        fit: "crop", "pad" or "stretch" (`resize_frame`).
        max_frames: stop after so many.
        start: seconds after the first frame.

    Yields:
        uint8 (H, W, 3), RGB, all of one size. Repeated frames may be the same array: copy before writing into it.

    Raises:
        ValueError: at the call, for a bad argument.
        VideoError: at the first frame, if none comes out.
    """
    check_size("iter_frames", size, fit)
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"iter_frames: fps must be positive, got {fps}")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"iter_frames: max_frames must be at least 1, got {max_frames}")
    if not 0 <= start < math.inf:
        raise ValueError(f"iter_frames: start must be 0 or more seconds, got {start}")
    return _iter_frames(os.fspath(path), fps, size, fit, max_frames, start)


def _iter_frames(path, fps, size, fit, max_frames, start) -> Iterator[np.ndarray]:
    faults = _Faults()
    with open_video(path) as container:
        stream = video_stream(path, container)
        clock = _Clock(container, stream, faults, seek_to=start)
        picked = sample_times(clock, None if clock.picture else fps, start, clock.slack)
        given, last, array = 0, None, np.empty((0, 0, 3), np.uint8)
        turns: dict[float, tuple[bool, bool, bool]] = {}
        for frame in picked:
            if frame is not last:  # a repeated frame is converted once
                # A frame asked for its side data is held by it, pixels and all, until Python collects garbage: only the
                # first of each rotation is asked.
                if frame.rotation not in turns:
                    turns[frame.rotation] = _turn_of(frame)
                turn = turns[frame.rotation]
                last, array = frame, _to_rgb(frame, turn)
                if size is not None:
                    turned = turn[0]
                    array = resize_frame(array, size, fit, pixel_aspect=pixel_aspect(stream, turned))
                elif clock.shape is not None and array.shape != clock.shape:
                    array = resize_frame(array, clock.shape[:2], "stretch")
                clock.shape = clock.shape or array.shape
            yield array
            given += 1
            if given == max_frames:
                break
        if given == 0 and clock.decoded:
            raise VideoError(f"{path}: expected frames from {start:g} s on, but the video ends at {clock.end:.2f} s")
        if given == 0:
            raise VideoError(nothing_decoded(path, stream, faults.notes))
        if given != max_frames:
            clock.check_length(stream_seconds(container, stream))
        faults.report(path, clock.decoded)


class _Clock:
    """Decoded frames as (seconds after the first, duration, frame); for files without time stamps, by nominal rate."""

    def __init__(self, container, stream, faults: _Faults, seek_to: float):
        self.container, self.stream, self.faults = container, stream, faults
        self.picture = is_picture(container, stream)
        self.interval = 1.0 / frame_rate(stream)
        self.slack = min(float(stream.time_base or 0), 0.2 * self.interval)
        self.origin: float | None = None
        self.decoded, self.end = 0, 0.0
        self.shape: tuple | None = None
        seekable = seek_to > 2.0 and stream.start_time is not None and container.format.name.startswith(_SEEKABLE)
        if seekable:
            origin = float(stream.start_time * stream.time_base)
            try:
                container.seek(int((origin + seek_to) / stream.time_base), stream=stream, backward=True)
                self.origin = origin
            except av.FFmpegError:
                pass  # no index: read on from the start

    def __iter__(self) -> Iterator[tuple[float, float, av.VideoFrame]]:
        previous = None
        for frame in _decoded(self.container, self.stream, self.faults):
            time = frame.time
            if self.origin is None:
                self.origin = time or 0.0
            if time is None:  # raw streams have none
                time = 0.0 if previous is None else previous + self.interval
            else:
                time -= self.origin
            time = time if previous is None else max(time, previous)
            duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else self.interval
            self.decoded, self.end, previous = self.decoded + 1, time + duration, time
            yield time, duration, frame

    def check_length(self, seconds: float | None) -> None:
        """Notes a clip that ends well before its header says: a cut between two packets is no fault of decoding."""
        missing = 0.0 if seconds is None else seconds - self.end
        if missing > max(0.5, 3 * self.interval):
            self.faults.note(f"they end at {self.end:.2f} s and the header says {seconds:.2f} s")


def _decoded(container, stream, faults: _Faults) -> Iterator[av.VideoFrame]:
    """All frames that decode, in order of display; faults are counted and stepped over."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            faults.note(f"the file cannot be read on ({error.strerror})")
            packet = None
        try:
            for frame in stream.decode(packet):
                faults.damaged += frame.is_corrupt
                yield frame
        except av.error.EOFError:
            return
        except av.FFmpegError as error:
            faults.packets += 1
            faults.note(error.strerror or str(error))
        if packet is None:
            return


def _to_rgb(frame: av.VideoFrame, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """uint8 (H, W, 3) as displayed: alpha over black, turned and mirrored (`_turn_of`)."""
    has_alpha = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    kind = "rgba" if has_alpha else "rgb24"
    array = frame.to_ndarray(format=kind, interpolation=ACCURATE, threads=1)
    if has_alpha:
        colour, alpha = array[..., :3], array[..., 3:].astype(np.uint16)
        array = ((colour * alpha + 127) // 255).astype(np.uint8)
    turned, flip_x, flip_y = turn
    array = array.swapaxes(0, 1) if turned else array
    array = array[:, ::-1] if flip_x else array
    array = array[::-1] if flip_y else array
    return np.ascontiguousarray(array)


def _turn_of(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(swap rows and columns, then mirror left-right, then mirror up-down), to the nearest quarter turn."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18.1 rejects frames that also carry EXIF; the rotation alone is still told
        quarter = round(frame.rotation / 90) % 4  # counter-clockwise
        return ((False, False, False), (True, False, True), (False, True, True), (True, True, False))[quarter]
    if matrix is None:
        return False, False, False
    # Displayed x = a p + c q, y = b p + d q for the stored column p and row q.
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0
