"""What `caption`, `ask` and `classify` share: clips read in batches, whole or window by window, and subtitles."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tasks.batches import grouped, side_by_side
from tasks.console import DONE, Console, to_json

if TYPE_CHECKING:
    from torch import Tensor

    from lm.model import PyramidLM
    from pyramid.tokens import TokenPyramid

ClipsOrStream = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...", help="Files, folders or globs; - or a pipe for a stream of video.", show_default=False
    ),
]
Detail = Annotated[
    int | None,
    typer.Option("--detail", "-d", help="Levels to read; the model's own choice by default.", show_default=False),
]
Every = Annotated[
    float | None,
    typer.Option(
        "--every", metavar="SECONDS", help="Read every so many seconds of a clip by themselves.", show_default=False
    ),
]
Subtitles = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="With --every: a file .srt, .vtt or .json, or a folder for several clips.",
        show_default=False,
    ),
]
Format = Annotated[str, typer.Option("--format", help="Of the files in the folder --out: srt, vtt or json.")]
BATCH = 32
Batch = Annotated[int, typer.Option("--batch", min=1, help="Clips read at once.")]

Item = TypeVar("Item")

FORMATS = ("srt", "vtt", "json")
SHORTEST = 0.05  # seconds of a window
SURE = 0.995  # what is at least as likely is said without its share


@dataclass(frozen=True)
class Shown:
    """Frames of a clip as a model sees them: `video` (1, 3, T, H, W) in [-1, 1]; `frames`: how many the file gave;
    `start`, `end`: seconds, of a window."""

    path: Path
    video: Tensor
    frames: int
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class Said:
    """What is said of a clip, how sure it is; more `fields` for `--json`, more `lines` to read."""

    text: str
    confidence: float
    fields: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


Load = Callable[[], Shown | Exception]  # reads a clip, or says why it cannot be read

# What is said of some clips, by their tokens and their places among all that are read.
Say = Callable[["TokenPyramid", Sequence[int]], list[Said]]


@dataclass(frozen=True)
class How:
    """The flags of a reading verb: `detail` to read, seconds of a window, clips of a batch, where subtitles go."""

    detail: int
    batch: int
    every: float | None = None
    out: Path | None = None
    kind: str = "srt"
    overwrite: bool = False


def read_clips(
    lm: PyramidLM,
    paths: Sequence[Path],
    say: Say,
    how: How,
    console: Console,
    name: str,
) -> int:
    """Run a reading verb: `say` on batches; a line for each clip or window, and subtitles. `name`: of the
    text in the records. Returns the exit code: a file that cannot be read is a line, and the others go on. A stream is
    read window by window as it comes, and an interrupt ends it as its own end does."""
    files = subtitle_files(paths, how)
    config, detail, every = lm.tokenizer.config, how.detail, how.every
    if every is None:
        what = f"{config.num_frames} frames over the length of each clip"
    else:
        what = f"{config.num_frames} frames of every {every:g} s"
    levels = f"at detail {detail} of {lm.num_levels}"
    console.note(f"reading {what}, cropped to {config.height}x{config.width}, {levels}")
    live = any(path.is_fifo() for path in paths)
    code, strange, total, begin = DONE, 0, 0, time.monotonic()
    cues: dict[Path, list[tuple[float, float, Said]]] = {}
    found = shown_clips(paths, config.num_frames, config.size, every)
    clips = enumerate(found) if every is not None else list(enumerate(found))

    def work(batch: list[tuple[int, tuple[Path, Load]]]) -> tuple[list[Shown | Exception], _Answers]:
        shown = [load() for _, (_, load) in batch]
        good = {place: clip for (place, _), clip in zip(batch, shown, strict=True) if isinstance(clip, Shown)}
        return shown, _say(lm, good, say, detail)

    worked = ((group, work(group)) for group in grouped(clips, 1)) if live else side_by_side(clips, work, how.batch)
    with suppress(*[KeyboardInterrupt] * live):
        for batch, (loaded, answers) in worked:
            said = iter(answers)
            for (_, (path, _)), shown in zip(batch, loaded, strict=True):
                if isinstance(shown, Exception):
                    code = console.refuse(path, shown)
                    continue
                (answer, alike), end = next(said), shown.end
                span = {} if end is None else {"start": round(shown.start, 3), "end": round(end, 3)}
                record = {"input": str(path), **span, name: answer.text, "confidence": round(answer.confidence, 4)}
                times = "" if end is None else f" {_clock(shown.start, '.')} - {_clock(end, '.')}"
                record |= {"detail": detail, "frames": shown.frames} | answer.fields
                if alike is not None:
                    record["familiar"] = alike
                    strange += not alike
                if end is not None:
                    cues.setdefault(path, []).append((shown.start, end, answer))
                total += 1
                unlike = "" if alike in (None, True) else " [unlike what the model was trained on]"
                sure = f" ({answer.confidence:.0%})" if answer.confidence < SURE else ""
                console.emit(record, "\n".join([f"{path}:{times} {answer.text}{sure}{unlike}", *answer.lines]))
    if total > 1:
        seconds = time.monotonic() - begin
        counted = "clips" if every is None else "windows"
        console.note(f"{total} {counted} in {seconds:.1f} s, {total / seconds:.1f} a second, files read and model run")
    if strange:
        console.note(
            f"unknown domain: {strange} of {total} are unlike what this model was trained on; what it says of them may "
            "mean nothing"
        )
    for path, file in files.items():
        if path in cues:
            write_subtitles(file, cues[path], name)
            console.note(f"{path}: {len(cues[path])} windows in {file}")
    return code


_Answers = list[tuple[Said, bool | None]]


def _say(lm: PyramidLM, good: Mapping[int, Shown], say: Say, detail: int) -> _Answers:
    """What is said of clips, by their places among all, and whether each is like what the model was trained on."""
    import torch

    if not good:
        return []
    with torch.inference_mode():
        tokens = lm.tokenizer.encode(torch.cat([shown.video for shown in good.values()]).to(lm.device), detail)
        said = say(tokens, list(good))
    return list(zip(said, familiar(lm, tokens), strict=True))


def familiar(lm: PyramidLM, tokens: TokenPyramid) -> list[bool | None]:
    """Of each clip whether it is like what the model was trained on; None where that cannot be told: a model that
    measured nothing, or tokens of fewer levels than it measured."""
    if lm.config.familiar is None or tokens.num_levels < lm.config.caption_detail:
        return [None] * tokens.batch_size
    return (lm.surprise(tokens) <= lm.config.familiar).tolist()


def shown_clips(
    paths: Sequence[Path], num_frames: int, size: tuple[int, int], every: float | None
) -> Iterable[tuple[Path, Load]]:
    """Clips in order and what reads each; or the windows of one after the other, read as they are asked for."""
    if every is not None:
        return _windows_of(paths, num_frames, size, every)
    return [(path, partial(or_error, partial(_whole, path, num_frames, size))) for path in paths]


def or_error(load: Callable[[], Item]) -> Item | Exception:
    """What it reads, or why that cannot be read."""
    try:
        return load()
    except (OSError, ValueError) as error:
        return error


def _whole(path: Path, num_frames: int, size: tuple[int, int]) -> Shown:
    from tasks.clips import read_spread

    return Shown(path, *read_spread(path, num_frames, size))


def _windows_of(
    paths: Sequence[Path], num_frames: int, size: tuple[int, int], every: float
) -> Iterator[tuple[Path, Load]]:
    for path in paths:
        found = windows(path, every, num_frames, size)
        while (shown := or_error(partial(next, found, None))) is not None:  # nothing follows an error
            yield path, partial(_itself, shown)


def _itself(shown: Shown | Exception) -> Shown | Exception:
    return shown


def windows(path: Path, every: float, num_frames: int, size: tuple[int, int]) -> Iterator[Shown]:
    """A clip `every` so many seconds, `num_frames` frames of each, in constant memory; the last window is as long as
    what is left, and repeats frames. Raises ValueError for no length, VideoError for a file that gives no frame."""
    import numpy as np

    from pyramid.data.frames import iter_frames
    from pyramid.data.transforms import from_uint8

    if not SHORTEST <= every < float("inf"):
        raise ValueError(f"--every: expected at least {SHORTEST} seconds, got {every}")
    rate = num_frames / every
    frames = iter_frames(path, fps=rate, size=size, fit="crop")
    start = 0.0
    while run := list(itertools.islice(frames, num_frames)):
        wanted = np.linspace(0, len(run) - 1, num_frames).round().astype(int)
        video = from_uint8(np.stack([run[index] for index in wanted]))[None]
        yield Shown(path, video, len(run), start, start + len(run) / rate)
        start += every


def subtitle_files(paths: Sequence[Path], how: How) -> dict[Path, Path]:
    """The file for each clip, checked before any work. Raises ValueError for a format that there is not, several clips
    for one file, or no --every; FileExistsError for a file that is there."""
    from tasks.files import name_outputs

    if how.kind not in FORMATS:
        raise ValueError(f"--format: expected one of {', '.join(FORMATS)}, got {how.kind!r}")
    if how.out is None:
        return {}
    if how.every is None:
        raise ValueError("--out: expected --every beside it: subtitles have times")
    files = name_outputs(list(paths), how.out, how.kind)
    for file in files:
        if file.suffix.removeprefix(".") not in FORMATS:
            raise ValueError(f"--out {file}: expected a name that ends in .srt, .vtt or .json, or a folder")
        if file.exists() and not how.overwrite:
            raise FileExistsError(f"{file}: exists already; give another --out, or --overwrite")
    return dict(zip(paths, files, strict=True))


def write_subtitles(file: Path, cues: Sequence[tuple[float, float, Said]], name: str) -> None:
    """Cues (start, end, text) as SubRip, WebVTT or JSON, by the file's suffix; the file appears whole."""
    from pyramid.files import replacing

    kind = file.suffix.removeprefix(".")
    if kind == "json":
        rows = [
            {"start": round(a, 3), "end": round(b, 3), name: said.text, "confidence": round(said.confidence, 4)}
            for a, b, said in cues
        ]
        text = to_json(rows, indent=2) + "\n"
    else:
        comma = "," if kind == "srt" else "."
        parts = [
            f"{number}\n{_clock(start, comma)} --> {_clock(end, comma)}\n{said.text or '-'}\n"
            for number, (start, end, said) in enumerate(cues, start=1)
        ]
        text = ("WEBVTT\n\n" if kind == "vtt" else "") + "\n".join(parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        part.write_text(text, encoding="utf8")


def _clock(seconds: float, comma: str) -> str:
    """hh:mm:ss,mmm"""
    total = round(seconds * 1000)
    minutes, rest = divmod(total, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{comma}{rest % 1000:03d}"
