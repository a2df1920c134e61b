"""Frames to the size and rate that a model wants: fit, resize, sample in time, and uint8 <-> float.

Everything works on one frame at a time, so memory does not depend on the length of a clip. Reading files is in
`frames.py`, writing in `video.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FITS = ("crop", "pad", "stretch")
RESIZE_FILTER = "bicubic, anti-aliased (Pillow)"  # what `resize_frame` resamples with

Item = TypeVar("Item")


def check_size(who: str, size: tuple[int, int] | None, fit: str) -> None:
    """Raises ValueError, in `who`'s name, unless `size` is None or two positive integers and `fit` is known."""
    if fit not in FITS:
        raise ValueError(f"{who}: fit must be one of {', '.join(FITS)}, got {fit!r}")
    if size is None:
        return
    if len(size) != 2 or any(int(side) != side or side < 1 for side in size):
        raise ValueError(f"{who}: size must be (height, width), both at least 1, got {size!r}")


def resize_frame(
    frame: np.ndarray, size: tuple[int, int], fit: str = "crop", *, pixel_aspect: float = 1.0
) -> np.ndarray:
    """Brings one frame to `size`, with anti-aliasing (bicubic).

    `crop` cuts the longer side around the centre, `pad` adds black on both sides of the shorter one, `stretch`
    changes the shape. `crop` and `pad` keep the shape that a viewer sees, so non-square pixels come out square.

    Args:
        frame: uint8 (H, W, 3).
        size: (height, width) of the result.
        fit: "crop", "pad" or "stretch".
        pixel_aspect: width of a source pixel divided by its height.

    Returns:
        uint8 (height, width, 3), contiguous; `frame` itself where nothing is to be done.

    Raises:
        ValueError: bad `size` or `fit`.
    """
    check_size("resize_frame", size, fit)
    height, width = size
    source_height, source_width = frame.shape[:2]
    shown_width = source_width * pixel_aspect
    if fit == "stretch":
        return _resample(frame, size, (0.0, 0.0, source_width, source_height))
    if fit == "crop":
        scale = max(height / source_height, width / shown_width)
        cut_width, cut_height = width / scale / pixel_aspect, height / scale
        left, top = max(0.0, (source_width - cut_width) / 2), max(0.0, (source_height - cut_height) / 2)
        right, bottom = min(source_width, left + cut_width), min(source_height, top + cut_height)
        return _resample(frame, size, (left, top, right, bottom))
    scale = min(height / source_height, width / shown_width)
    inner = (min(height, max(1, round(source_height * scale))), min(width, max(1, round(shown_width * scale))))
    picture = _resample(frame, inner, (0.0, 0.0, source_width, source_height))
    if inner == (height, width):
        return picture
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    out = np.zeros((height, width, 3), np.uint8)
    out[top : top + inner[0], left : left + inner[1]] = picture
    return out


def _resample(frame: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """The part `box` (left, top, right, bottom) of a frame, at `size` (height, width)."""
    height, width = frame.shape[:2]
    if size == (height, width) and box == (0, 0, width, height):
        return frame
    picture = Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.array(picture)


def sample_times(
    frames: Iterable[tuple[float, float, Item]], fps: float | None, start: float = 0.0, slack: float = 0.0
) -> Iterator[Item]:
    """Picks the frame shown at each of the times start, start + 1/fps, start + 2/fps, ... until the clip ends.

    The frame shown at a time is the last one that began at or before it: it repeats where the clip is slower than
    `fps` and is left out where the clip is faster, so a variable frame rate needs no special case.

    Args:
        frames: (time, duration, item) in seconds, times not decreasing.
        fps: the rate wanted; None gives each frame from the one shown at `start` on, once.
        start: the first time.
        slack: a frame this much late still counts as on time (time stamps are rounded in many formats).
    """
    shown: tuple[Item] | None = None  # boxed, so that any item will do
    end, count = 0.0, 0
    for time, duration, item in frames:
        if shown is not None:
            if fps is None:
                if time > start + slack:
                    yield shown[0]
            else:
                while start + count / fps < time - slack:
                    yield shown[0]
                    count += 1
        shown, end = (item,), time + duration
    if shown is None:
        return
    if fps is None:
        if end > start + slack:
            yield shown[0]
        return
    while start + count / fps < end - slack:
        yield shown[0]
        count += 1


def to_uint8(video: Tensor) -> Tensor:
    """Float video (3, T, H, W) in [-1, 1] to frames, uint8 (T, H, W, 3), by rounding; values outside are clamped.

    Raises:
        ValueError: not four axes with three channels first, not floating point, or NaN.
    """
    if not isinstance(video, Tensor) or video.ndim != 4 or video.shape[0] != 3 or not video.is_floating_point():
        raise ValueError(f"to_uint8: expected a float tensor (3, T, H, W), got {_describe(video)}")
    if video.isnan().any():
        raise ValueError(f"to_uint8: expected numbers in [-1, 1], got {int(video.isnan().sum())} NaN")
    scaled = (video.detach().float().clamp(-1.0, 1.0) + 1.0) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def from_uint8(frames: Tensor | np.ndarray) -> Tensor:
    """Frames, uint8 (T, H, W, 3), to float32 video (3, T, H, W) in [-1, 1]: the exact inverse of `to_uint8`.

    Raises:
        ValueError: not uint8, or not four axes with three channels last.
    """
    if isinstance(frames, np.ndarray) and frames.dtype == np.uint8:
        frames = torch.from_numpy(np.ascontiguousarray(frames))
    if not isinstance(frames, Tensor) or frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"from_uint8: expected uint8 frames (T, H, W, 3), got {_describe(frames)}")
    return frames.permute(3, 0, 1, 2).contiguous().float().div_(127.5).sub_(1.0)


def _describe(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{value.dtype} {tuple(value.shape)}"
    return type(value).__name__
