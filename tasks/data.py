"""`pyramid data`: what training reads, made from other things: folders of clips, word tables (`word_table.py`), words
of classes (`class_words.py`), and tokens (`token_folder.py`).

`omniglot`: handwriting. OUT/train and OUT/val hold a clip a drawing (or several, `--variants`), OUT/metadata.jsonl a
line a clip: the fields that `pyramid.data.folder` reads, and beside them what is known about the drawing. Clips are
rendered in worker processes; what a clip looks like depends on the seed, the drawing and the variant alone.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zipfile import ZipFile

import typer

from tasks import class_words, token_folder, word_table
from tasks.console import DONE, USER_CAN_MEND, Console, one_line
from tasks.files import claim_folder
from tasks.options import Json, Out, Overwrite, Seed, parse_size

if TYPE_CHECKING:
    from pyramid.data.ink import InkConfig
    from pyramid.data.omniglot import Drawing

app = typer.Typer(help="Make what training reads: folders of clips, word tables, tokens.", no_args_is_help=True)
app.command()(word_table.words)
app.command()(class_words.classes)
app.command()(token_folder.tokens)

_METADATA = "metadata.jsonl"
_BATCH = 16  # drawings a call of a worker
_WORTH_A_WORKER = 500  # clips: a process takes seconds to start, and renders some hundred a second


@app.command()
def omniglot(
    archives: Annotated[
        list[Path], typer.Argument(metavar="ZIP...", help="Zips of Omniglot's strokes.", show_default=False)
    ],
    out: Out = Path("runs/omniglot"),
    size: Annotated[str, typer.Option("--size", help="Height, or height x width: 64, 64x112.")] = "64",
    frames: Annotated[int, typer.Option("--frames", min=1, help="Frames a clip, whatever the time it took.")] = 17,
    fps: Annotated[float, typer.Option("--fps", help="Frames a second of the files.")] = 8.0,
    variants: Annotated[
        int, typer.Option("--variants", min=1, help="Clips a drawing, each in another ink and on other paper.")
    ] = 1,
    plain: Annotated[
        bool, typer.Option("--plain", help="Black on white, each drawing where its drawer put it.")
    ] = False,
    max_pause: Annotated[
        float, typer.Option("--max-pause", help="Seconds that a longer rest of the pen is cut to.")
    ] = 0.4,
    suffix: Annotated[
        str, typer.Option("--suffix", help="Format of the clips: .mp4 .webm .gif, .mkv is lossless.")
    ] = ".mp4",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=0, help="Processes; 0 for this one alone. By default the cores.", show_default=False
        ),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Handwriting: Omniglot's timed strokes as clips of ink growing.

    Each clip has a caption, "writing Greek character 23 in four strokes", and labels: alphabet, character, drawer,
    strokes. Drawers 1 to 16 are split train, the others val. A drawing that cannot be read is one line, and the others
    go on.
    """
    with Console("data omniglot", as_json, writes=True) as console:
        from pyramid.data.ink import InkConfig
        from pyramid.data.omniglot import find_drawings
        from pyramid.data.video import check_suffix
        from pyramid.files import filling

        height, width = parse_size(size)
        style = _Style(
            InkConfig(height, width, frames, plain, max_pause),
            fps,
            variants,
            check_suffix(f"clip.{suffix.removeprefix('.')}"),
            seed,
        )
        _check(style)
        drawings, repeated = find_drawings(archives)
        claim_folder(out, overwrite, inputs=archives)
        if repeated:
            console.note(f"{repeated} drawings are in more than one zip; each is taken once")
        begin = time.monotonic()
        if workers is None:
            workers = min(os.cpu_count() or 1, len(drawings) * variants // _WORTH_A_WORKER)
        rows, broken = [], 0
        with filling(out, _METADATA) as part:
            made = _render_all(drawings, functools.partial(_render, style=style, root=part), workers)
            for drawing, result in zip(console.track(drawings, "drawings"), made, strict=True):
                if isinstance(result, list):
                    rows += result
                    continue
                broken += 1
                console.fault(result)
                console.emit({"input": f"{drawing.archive}, {drawing.member}", "error": one_line(result)})
            if not rows:
                raise ValueError(f"{archives[0]}: expected at least one drawing that can be read, got none")
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (part / _METADATA).write_text("".join(lines), encoding="utf8")
        record = _summary(out, rows, broken, time.monotonic() - begin)
        console.emit(record, _line(record))
        return USER_CAN_MEND if broken else DONE


@dataclass(frozen=True)
class _Style:
    """All that the clips have in common."""

    ink: InkConfig
    fps: float
    variants: int
    suffix: str
    seed: int


def _check(style: _Style) -> None:
    """What the writer would refuse at the first clip, or a reader later."""
    from pyramid.data.video import MAX_PIXELS

    most = 50 if style.suffix == ".gif" else 1000
    if style.suffix == ".png":
        raise ValueError("--suffix: expected a format of clips, got .png, which is one of pictures")
    if style.ink.plain and style.variants > 1:
        raise ValueError(f"--variants: expected 1 with --plain, where all would be the same, got {style.variants}")
    if not 0.01 <= style.fps <= most:
        raise ValueError(f"--fps: expected from 0.01 to {most}, got {style.fps}")
    if style.ink.height * style.ink.width > MAX_PIXELS:
        raise ValueError(f"--size: expected at most {MAX_PIXELS} pixels, got {style.ink.height}x{style.ink.width}")


Rendered = list[dict[str, Any]] | ValueError  # the lines of metadata of one drawing, or what is wrong with it


def _render_all(
    drawings: list[Drawing], render: Callable[[list[Drawing]], list[Rendered]], workers: int
) -> Iterator[Rendered]:
    """The result of each drawing, in their order."""
    batches = [drawings[start : start + _BATCH] for start in range(0, len(drawings), _BATCH)]
    if workers == 0:
        yield from chain.from_iterable(map(render, batches))
        return
    # Fresh interpreters: the fork of a process in which torch has started threads may hang.
    # Ctrl-C reaches all of them; this process alone ends the run, and the others with it.
    deaf = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), signal.signal, deaf) as pool:
        yield from chain.from_iterable(pool.map(render, batches))


def _render(drawings: list[Drawing], style: _Style, root: Path) -> list[Rendered]:
    """Writes the clips of some drawings."""
    from pyramid.data.omniglot import StrokeError, read_strokes

    results: list[Rendered] = []
    with ExitStack() as stack:
        archives = {path: stack.enter_context(ZipFile(path)) for path in {drawing.archive for drawing in drawings}}
        for drawing in drawings:
            try:
                strokes = read_strokes(archives[drawing.archive], drawing)
            except StrokeError as error:
                results.append(error)
                continue
            results.append([_write_clip(drawing, strokes, variant, style, root) for variant in range(style.variants)])
    return results


def _write_clip(drawing: Drawing, strokes: list, variant: int, style: _Style, root: Path) -> dict[str, Any]:
    import numpy as np

    from pyramid.data.ink import render_ink
    from pyramid.data.video import write_video

    tag = f".v{variant + 1}" if style.variants > 1 else ""
    name = f"{drawing.split}/{drawing.key}{tag}{style.suffix}"
    rng = np.random.default_rng((style.seed, zlib.crc32(drawing.key.encode()), variant))
    look, frames = render_ink(strokes, style.ink, rng)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    write_video(root / name, frames, style.fps)
    return {
        "file_name": name,
        "caption": drawing.caption(len(strokes)),
        "label": drawing.label,
        "split": drawing.split,
        "alphabet": drawing.alphabet,
        "character": drawing.character,
        "drawer": drawing.drawer,
        "strokes": len(strokes),
        "seconds": round(float(strokes[-1][-1, 2]) / 1000, 3),
        "ink": look.ink,
        "paper": look.paper,
    }


def _summary(out: Path, rows: list[dict], broken: int, seconds: float) -> dict[str, Any]:
    splits = Counter(row["split"] for row in rows)
    return {
        "out": str(out),
        "clips": len(rows),
        **{split: splits[split] for split in ("train", "val")},
        "alphabets": len({row["alphabet"] for row in rows}),
        "characters": len({row["label"] for row in rows}),
        "broken": broken,
        "seconds": round(seconds, 2),
        "clips_per_second": round(len(rows) / max(seconds, 1e-9), 1),
    }


def _line(record: dict[str, Any]) -> str:
    text = (
        f"{record['out']}: {record['clips']} clips ({record['train']} train, {record['val']} val) of "
        f"{record['characters']} characters of {record['alphabets']} alphabets, "
        f"{record['clips_per_second']:.0f} a second"
    )
    return f"{text}; {record['broken']} drawings could not be read" if record["broken"] else text
