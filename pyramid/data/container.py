"""Opening a video file: which files are refused, with what words, and what a header says.

Every refusal is one line that names the file, what was expected and what came. Frames are in `frames.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import av

MAX_PIXELS = 2**27  # of one frame: 16384 x 8192, four times 8K; larger ones are refused before they are decoded
_LFS_HEAD = b"version https://git-lfs.github.com/spec/"


class VideoError(ValueError):
    """A file that gives no video. One line: the file, what was expected, what came."""


class VideoWarning(UserWarning):
    """A file that gives video, but not all that its header promises."""


def open_video(path: str | os.PathLike) -> av.container.InputContainer:
    """The file as a PyAV container. Local files only, and the name is never a pattern. A pipe is read as it comes.

    Raises:
        VideoError: nothing there, a folder, empty, a Git LFS pointer, text, or not video.
    """
    path = Path(path)
    if not path.exists():
        raise VideoError(f"{path}: expected a video file, but nothing is there")
    if path.is_dir():
        raise VideoError(f"{path}: expected a video file, got a folder")
    if path.stat().st_size == 0 and not path.is_fifo():
        raise VideoError(f"{path}: expected a video file, but it is empty (0 bytes)")
    try:
        return av.open(f"file:{path}", options={"protocol_whitelist": "file", "pattern_type": "none"})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: expected a video or picture, {_what_else(path, error)}") from None


def _what_else(path: Path, error: Exception) -> str:
    """What a file is that FFmpeg cannot open."""
    reason = getattr(error, "strerror", None) or error
    if path.is_fifo():
        return f"got a stream that FFmpeg does not read ({reason}); MP4 streams in fragments, or its index in front"
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as unreadable:
        return f"but it cannot be read ({unreadable.strerror})"
    if head.startswith(_LFS_HEAD):
        return "got a Git LFS pointer: the video itself was not downloaded (git lfs pull)"
    if b"ftyp" in head[:16]:
        return "got an MP4 or MOV without its index: cut short, or not closed by its writer"
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return "got text"
    return f"got {os.path.getsize(path)} bytes that FFmpeg does not read ({reason})"


def video_stream(path, container):
    """The first video stream that is not a cover picture, checked and ready to decode."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        audio = [stream.codec_context.name for stream in container.streams.audio]
        came = f"only sound ({audio[0]})" if audio else "no stream at all"
        raise VideoError(f"{path}: expected a video stream, got {came}")
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError(f"{path}: expected a codec that this FFmpeg decodes, got an unknown one")
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoError(f"{path}: expected frames of at most {MAX_PIXELS} pixels, got {stream.width}x{stream.height}")
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # for streams that grow later
    # With slices in several threads FFmpeg hides that frames are damaged, on machines of several cores alone; it is no
    # faster on streams of one slice a frame, which most are.
    stream.codec_context.thread_count = 1
    return stream


def nothing_decoded(path, stream, faults: list[str]) -> str:
    """The message for a stream without one frame that decodes."""
    codec = stream.codec_context.codec.canonical_name
    size = f" of {stream.width}x{stream.height}" if stream.width else ""
    why = faults[0] if faults else "it is empty"
    return f"{path}: expected at least one frame, got none from its {codec} stream{size} ({why})"


def frame_rate(stream) -> float:
    """Average frames a second; nominal where the file has no time stamps."""
    if stream.start_time is None:  # a raw stream: its average is FFmpeg's default, its guess reads the headers
        return float(stream.guessed_rate or stream.average_rate or 25)
    return float(stream.average_rate or stream.guessed_rate or 25)


def pixel_aspect(stream, turned: bool) -> float:
    """Width of a displayed pixel divided by its height."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return 1 / aspect if turned else aspect


def is_picture(container, stream) -> bool:
    """Whether this is one still, which has no duration."""
    kind = container.format.name
    return kind.endswith("_pipe") or kind == "image2" or (kind in ("gif", "apng") and stream.frames == 1)


def stream_seconds(container, stream) -> float | None:
    """Length of the video stream by its header, or of the file where the stream does not say; None for a still."""
    if is_picture(container, stream):
        return None
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration:
        end, begin = container.duration, container.start_time or 0
        tag = stream.metadata.get("DURATION", "")  # Matroska: the end of this stream
        if tag.count(":") == 2:
            hours, minutes, seconds = (float(part) for part in tag.split(":"))
            end = (hours * 3600 + minutes * 60 + seconds) * av.time_base
        return (end - begin) / av.time_base if end > begin else end / av.time_base
    return None
