"""Video files in and out. Import from here; reading is in `frames.py`, contact sheets are in `sheet.py`.

Writing is atomic: frames go to a hidden temporary file in the same folder, which takes the name at the end; on any
exception it is removed. The suffix picks the format:

    .mp4 .m4v .mov   H.264 (libx264, crf 18, BT.709). 4:2:0, which every player shows; a frame with an odd side is
                     written in 4:4:4 instead, so that its size is kept (ffmpeg and Chrome play that, Safari does not)
    .webm            VP9, 4:2:0
    .mkv             FFV1 in RGB: lossless
    .gif             a palette a frame, endless loop; at most 50 frames a second (viewers slow down faster ones). Delays
                     are whole numbers of 1/100 s: at 8 frames a second 12 and 13 in turn, which is read as 8.33
    .png             one frame: the picture itself; more: a contact sheet of up to 64 of them, evenly spaced
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pyramid.data.container import MAX_PIXELS, VideoError, VideoWarning
from pyramid.data.frames import ACCURATE, VideoInfo, iter_frames, probe
from pyramid.data.sheet import contact_sheet
from pyramid.data.transforms import from_uint8, to_uint8

__all__ = [
    "MAX_PIXELS",
    "VideoError",
    "VideoInfo",
    "VideoWarning",
    "VideoWriter",
    "check_suffix",
    "contact_sheet",
    "from_uint8",
    "iter_frames",
    "probe",
    "read_clip",
    "to_uint8",
    "write_video",
]

MAX_CLIP_BYTES = 8 * 2**30  # of one float32 clip in memory
_SHEET_FRAMES = 64

# libswscale puts chroma in the middle of its four pixels, H.264 says "left" unless told (chromaloc=1): a tint of 0.5.
_H264 = {"crf": "18", "x264-params": "chromaloc=1"}

# suffix: container, codec, pixel format, codec options
_FORMATS: dict[str, tuple[Any, Any, Any, dict[str, str]]] = {
    ".mp4": ("mp4", "libx264", "yuv420p", _H264),
    ".m4v": ("mp4", "libx264", "yuv420p", _H264),
    ".mov": ("mov", "libx264", "yuv420p", _H264),
    ".webm": ("webm", "libvpx-vp9", "yuv420p", {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4"}),
    ".mkv": ("matroska", "ffv1", "bgr0", {}),
    ".gif": ("gif", "gif", "pal8", {"gifflags": "0"}),
    ".png": (None, None, None, {}),
}


def check_suffix(path: str | os.PathLike) -> str:
    """The suffix of a file to be written, in lower case. Raises ValueError for one that names no format."""
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(_FORMATS)}, got {suffix or 'no suffix'}")
    return suffix


def max_rate(path: str | os.PathLike) -> float:
    """The most frames a second that a file of this suffix may have."""
    return 50.0 if check_suffix(path) == ".gif" else 1000.0


def read_clip(
    path: str | os.PathLike,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    fit: str = "crop",
    start: float = 0.0,
) -> Tensor:
    """Reads a clip into memory.

    Args:
        num_frames: at most so many frames; None for all. A shorter clip comes as it is.
        path, fps, size, fit, start: as `iter_frames`.

    Returns:
        float32 (3, T, H, W) in [-1, 1].

    Raises:
        ValueError: a bad argument.
        VideoError: as `iter_frames`, and for a clip of more than `MAX_CLIP_BYTES`.
    """
    frames: list[np.ndarray] = []
    for frame in iter_frames(path, fps=fps, size=size, fit=fit, max_frames=num_frames, start=start):
        room = MAX_CLIP_BYTES // (frame.size * 4)
        if len(frames) >= room:
            raise VideoError(
                f"{path}: expected a clip of at most {room} frames of {frame.shape[1]}x{frame.shape[0]} "
                f"({MAX_CLIP_BYTES >> 30} GiB), got more; give num_frames, fps or size, or stream it with iter_frames"
            )
        frames.append(frame)
    return from_uint8(np.stack(frames))


class VideoWriter:
    """Writes frames one by one, in constant memory; the file appears only when it is complete.

    Use it as a context manager: leaving it normally finishes the file, leaving it by an exception removes what was
    written.

    Args:
        path: where to; its suffix picks the format (see the top of the file).
        fps: frames a second, 0.001 to 1000 (.gif: 0.002 to 50).
        overwrite: replace a file that is there.

    Raises:
        FileExistsError: something is there, and `overwrite` is False.
        FileNotFoundError: the folder is not there.
        ValueError: unknown suffix, bad fps.
    """

    def __init__(self, path: str | os.PathLike, fps: float = 8, overwrite: bool = False):
        self.path = Path(path)
        suffix = check_suffix(self.path)
        low, high = (0.002 if suffix == ".gif" else 0.001), max_rate(self.path)
        if not low <= fps <= high:
            raise ValueError(f"{path}: fps must be from {low} to {high} for {suffix}, got {fps}")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{path}: the folder {self.path.parent} does not exist")
        self.fps, self.overwrite, self.num_frames = fps, overwrite, 0
        self._check_free()
        self._temporary = self.path.with_name(f".{self.path.stem[:100]}.{secrets.token_hex(4)}.partial")
        self._format, self._codec, self._pixels, self._options = _FORMATS[suffix]
        self._shape: tuple[int, ...] | None = None
        self._container: Any = None  # PyAV's; opened when the first frame tells the size
        self._stream: Any = None
        self._sheet: list[np.ndarray] = []
        self._stride = 1
        self._closed = False

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, frame: np.ndarray | Tensor) -> None:
        """Adds one frame, uint8 (H, W, 3) in RGB, of the same size as the first.

        Raises:
            ValueError: another type, shape or size, or the writer is closed.
            OSError: the file cannot be written.
        """
        if self._closed:
            raise ValueError(f"{self.path}: expected an open writer, got a frame after close()")
        if isinstance(frame, Tensor):
            frame = frame.numpy(force=True)
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            came = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ValueError(f"{self.path}: expected frames as uint8 (H, W, 3), got {came}")
        if self._shape is None:
            if 0 in frame.shape:
                raise ValueError(f"{self.path}: expected frames of at least 1x1 pixels, got {frame.shape}")
            self._shape = frame.shape
        if frame.shape != self._shape:
            raise ValueError(f"{self.path}: expected frames of one size {self._shape}, got {frame.shape}")
        try:
            with _naming(self.path):
                self._add(np.ascontiguousarray(frame))
        except BaseException:
            self.abort()
            raise
        self.num_frames += 1

    def close(self) -> None:
        """Finishes the file and gives it its name. A second call does nothing.

        Raises:
            ValueError: no frame was written.
            FileExistsError: something took the name meanwhile, and `overwrite` is False.
            OSError: the file cannot be written.
        """
        if self._closed:
            return
        try:
            if self.num_frames == 0:
                raise ValueError(f"{self.path}: expected at least one frame to write, got none")
            self._check_free()
            with _naming(self.path):
                if self._container is None:
                    _write_sheet(self._temporary, self._sheet)
                else:
                    self._container.mux(self._stream.encode(None))
                    self._container.close()
                os.replace(self._temporary, self.path)
        except BaseException:
            self.abort()
            raise
        self._closed = True

    def abort(self) -> None:
        """Stops, and removes what was written. After `close()` it does nothing."""
        if self._closed:
            return
        self._closed, self._sheet = True, []
        try:
            if self._container is not None:
                self._container.close()
        except av.FFmpegError:
            pass  # a container that cannot be finished is what abort is for
        finally:
            self._temporary.unlink(missing_ok=True)

    def _check_free(self) -> None:
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path}: expected a file name, got a folder")
        if self.path.exists() and not self.overwrite:
            raise FileExistsError(f"{self.path}: exists already; choose another name or pass overwrite=True")

    def _add(self, frame: np.ndarray) -> None:
        if self._format is None:
            self._keep(frame)
            return
        if self._container is None:
            self._begin(*frame.shape[:2])
        if self._pixels == "pal8":
            picture = _paletted(frame)
        else:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            matrix: dict[str, Any] = (
                {} if self._pixels == "bgr0" else {"dst_colorspace": "ITU709", "dst_color_range": "MPEG"}
            )
            picture = self._reformatter.reformat(
                picture, format=self._pixels, interpolation=ACCURATE, threads=1, **matrix
            )
        picture.pts, picture.time_base = self.num_frames, self._stream.codec_context.time_base
        self._container.mux(self._stream.encode(picture))

    def _begin(self, height: int, width: int) -> None:
        self._container = av.open(str(self._temporary), "w", format=self._format)
        rate = Fraction(self.fps).limit_denominator(1001)
        self._stream = self._container.add_stream(self._codec, rate=rate, options=dict(self._options))
        if self._codec == "libx264" and (height % 2 or width % 2):
            self._pixels = "yuv444p"
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, self._pixels
        context = self._stream.codec_context
        context.time_base = 1 / rate
        if self._pixels.startswith("yuv"):
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
            context.color_range = 1  # limited
        self._reformatter = av.video.reformatter.VideoReformatter()

    def _keep(self, frame: np.ndarray) -> None:
        """Keeps at most 2 x _SHEET_FRAMES frames, evenly spaced, of a stream of unknown length."""
        if self.num_frames % self._stride:
            return
        self._sheet.append(frame.copy())
        if len(self._sheet) == 2 * _SHEET_FRAMES:
            self._sheet, self._stride = self._sheet[::2], 2 * self._stride


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file that cannot be written: FFmpeg names none, the system the temporary one."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def _paletted(frame: np.ndarray) -> av.VideoFrame:
    picture = Image.fromarray(frame).quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    rgb = np.zeros((256, 3), np.uint8)
    used = np.array(picture.getpalette(), np.uint8).reshape(-1, 3)
    rgb[: len(used)] = used
    argb = np.concatenate([np.full((256, 1), 255, np.uint8), rgb], axis=1)
    return av.VideoFrame.from_ndarray((np.array(picture), argb), format="pal8")  # type: ignore[arg-type]  # a pair, as its docstring asks


def _write_sheet(path: Path, frames: list[np.ndarray]) -> None:
    if len(frames) == 1:
        Image.fromarray(frames[0]).save(path, format="png")
        return
    picked = np.linspace(0, len(frames) - 1, min(len(frames), _SHEET_FRAMES)).round().astype(int)
    video = from_uint8(np.stack([frames[index] for index in picked]))
    rows = video.split(8, dim=1)
    Image.fromarray(contact_sheet(rows)).save(path, format="png")


def write_video(
    path: str | os.PathLike, video: Tensor | Iterable[np.ndarray | Tensor], fps: float = 8, overwrite: bool = False
) -> None:
    """Writes a whole clip.

    Args:
        path, fps, overwrite: as `VideoWriter`.
        video: float (3, T, H, W) in [-1, 1], or frames as uint8 (H, W, 3), which may come one at a time.

    Raises:
        What `VideoWriter` raises; `to_uint8` for a bad tensor.
    """
    with VideoWriter(path, fps, overwrite) as writer:
        frames = to_uint8(video) if isinstance(video, Tensor) and video.dtype != torch.uint8 else video
        for frame in frames:
            writer.write(frame)
