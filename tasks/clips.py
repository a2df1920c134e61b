"""Clips as the verbs read them: streamed in chunks at their own size, or a few frames spread over the whole clip."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from torch import Tensor

from pyramid.data.container import open_video, video_stream
from pyramid.data.frames import VideoInfo, iter_frames
from pyramid.data.transforms import from_uint8
from pyramid.data.video import max_rate

if TYPE_CHECKING:
    from tasks.console import Console


def rate_varies(path: Path) -> bool:
    """Whether some frame of a clip is shown for half as long again as most are, or most as some frame is; its time
    stamps are read to the end, without decoding. False where it has none. Raises VideoError for a file that gives no
    video."""
    times = []
    with open_video(path) as container, suppress(av.FFmpegError):
        for packet in container.demux(video_stream(path, container)):
            times += [packet.pts] if packet.pts is not None else []
    steps = np.diff(sorted(times))
    if steps.size < 2:
        return False
    usual = np.median(steps)
    return bool(steps.max() > 1.5 * usual + 1 or usual > 1.5 * steps.min() + 1)  # 1: time stamps are rounded


def shown_size(info: VideoInfo, max_side: int | None = None) -> tuple[int, int]:
    """(height, width) in square pixels, the longer side at most `max_side`. A width that is stretched comes out even,
    as most players want it."""
    height, width = info.height, info.width
    if info.pixel_aspect != 1:
        width = max(2, 2 * round(width * info.pixel_aspect / 2))
    scale = min(1.0, max_side / max(height, width)) if max_side is not None else 1.0
    return max(1, round(height * scale)), max(1, round(width * scale))


def written_rate(info: VideoInfo, file: Path, usual: float) -> float:
    """Frames a second of what is written to `file`: the clip's own, `usual` where it has none, at most what the format
    takes."""
    rate = info.fps if info.fps and math.isfinite(info.fps) else usual
    return min(rate, max_rate(file))


def thinned_rate(info: VideoInfo, file: Path) -> float | None:
    """The rate to read a clip at where `file` does not take its own: frames are left out, going by their times."""
    most = max_rate(file)
    return most if info.fps and most < info.fps < math.inf else None


def name_losses(path: Path, info: VideoInfo, file: Path, rate: float, console: Console) -> None:
    """Say what of a clip is not kept in `file`, of `rate` frames a second: uneven times, sound."""
    if thinned_rate(info, file) is None and rate_varies(path):
        console.note(f"{path}: its frame rate varies; the frames are written at {rate:.4g} a second throughout")
    if info.has_audio:
        console.note(f"{path}: its sound is not kept")


def stream_chunks(
    path: Path, chunk_frames: int, fps: float | None = None, size: tuple[int, int] | None = None
) -> Iterator[Tensor]:
    """Chunks (1, 3, t, H, W) in [-1, 1] for `PyramidTokenizer.encode_stream`: the first frame, then runs of
    `chunk_frames`, the last as long as what is left; at the clip's own rate and size unless `fps` or `size` (height,
    width) say another. Raises VideoError for a file that gives no frame."""
    frames = iter_frames(path, fps=fps, size=size, fit="stretch")
    run = list(islice(frames, 1))
    while run:
        yield from_uint8(np.stack(run))[None]
        run = list(islice(frames, chunk_frames))


class Spread:
    """Frames spread evenly over a stream of unknown length: at most `2 * keep` are in memory."""

    def __init__(self, keep: int) -> None:
        self.keep, self.count = keep, 0
        self._frames: list[np.ndarray] = []
        self._stride = 1
        self._last: np.ndarray | None = None

    def add(self, frame: np.ndarray) -> None:
        if self.count % self._stride == 0:
            self._frames.append(frame)
            if len(self._frames) == 2 * self.keep:
                self._frames, self._stride = self._frames[::2], 2 * self._stride
        self._last, self.count = frame, self.count + 1

    def pick(self, num_frames: int) -> list[np.ndarray]:
        """`num_frames` frames, first and last included, each the nearest that was kept; repeated if there are fewer."""
        if self._last is None:
            raise ValueError("Spread.pick: expected at least one frame, got none")
        frames = [*self._frames, self._last]
        times = np.array([*range(0, self.count, self._stride), self.count - 1])
        wanted = np.linspace(0, self.count - 1, num_frames).round()
        return [frames[np.abs(times - time).argmin()] for time in wanted]


def read_spread(path: Path, num_frames: int, size: tuple[int, int]) -> tuple[Tensor, int]:
    """`num_frames` frames spread evenly over a whole clip, resized and cropped to `size` (height, width): video
    (1, 3, num_frames, H, W) in [-1, 1], and the number of frames that the file gave.

    A clip of that many frames comes as it is, a shorter one repeats frames. The file is decoded to its end, whatever
    its header says, in constant memory. Raises VideoError for a file that gives no frame.
    """
    spread = Spread(8 * num_frames)
    for frame in iter_frames(path, size=size, fit="crop"):
        spread.add(frame)
    return from_uint8(np.stack(spread.pick(num_frames)))[None], spread.count
