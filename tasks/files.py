"""Which files a verb reads and writes: a file, a folder or a glob in; names that are never overwritten out."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tasks.console import to_json

STDIN = Path("/dev/stdin")


def find_clips(inputs: Iterable[str], streams: bool = False) -> list[Path]:
    """The files that files, folders (searched in depth) and globs stand for, each once, in order; with `streams` pipes
    too, and `-` for standard input.

    A file that is named is taken whatever it is called: its content decides what it is.

    Raises FileNotFoundError for a name that stands for nothing, ValueError for a stream where none can be read.
    """
    from pyramid.data.folder import find_clips as clips_in

    found: dict[Path, None] = {}
    for name in inputs:
        path = STDIN if name == "-" else Path(name)
        if path.is_fifo() and not streams:
            raise ValueError(f"{name}: expected a file, got a stream, which caption, ask and classify alone read")
        if path == STDIN and sys.stdin.isatty():
            raise ValueError(f"{name}: expected a stream of video at standard input, got a terminal")
        if path.is_dir():
            inside = [clip.path for clip in clips_in(path)]
            if not inside:
                raise FileNotFoundError(f"{name}: expected clips in this folder, found none")
        elif path.exists():
            inside = [path]
        else:
            inside = [Path(match) for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]
            if not inside:
                raise FileNotFoundError(f"{name}: expected a file, a folder or a glob, found nothing")
        found.update(dict.fromkeys(inside))
    return list(found)


def tagged(path: Path, *tags: str) -> Path:
    """`clip.mp4` with tags "2", "detail-3" -> `clip.2.detail-3.mp4`."""
    return path.with_name(".".join([path.stem, *tags]) + path.suffix)


def name_outputs(inputs: list[Path], out: Path, suffix: str) -> list[Path]:
    """A name for the result of each input: `out` itself where it is a file name, else a file in the folder `out`, with
    `suffix` ("gif" or ".gif"). Inputs that share a stem keep their own suffix in the name.

    A name with a suffix is a file's, but for those that end in a number, such as `v1.0`, and folders that are there.
    """
    if out.suffix and not out.suffix[1:].isdigit() and not out.is_dir():
        if len(inputs) > 1:
            raise ValueError(f"--out {out}: expected a folder for {len(inputs)} inputs, got a file name")
        return [out]
    stems = Counter(path.stem for path in inputs)
    names = [path.stem if stems[path.stem] == 1 else path.name for path in inputs]
    again = [name for name, count in Counter(names).items() if count > 1]
    if again:
        raise ValueError(f"--out {out}: expected inputs with different names, got {again[0]} more than once")
    return [out / f"{name}.{suffix.removeprefix('.')}" for name in names]


def claim(paths: Iterable[Path], overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Check, before any work, that these videos may be written. Writes nothing, and makes no folder.

    Raises ValueError for a suffix that names no format, and for a file that is one of `inputs`; IsADirectoryError for a
    folder; FileExistsError for a file that is there, unless `overwrite`.
    """
    from pyramid.data.video import check_suffix

    read = {_identity(path) for path in inputs if path.exists()}
    for path in paths:
        check_suffix(path)
        if path.is_dir():
            raise IsADirectoryError(f"{path}: expected a file name, found a folder")
        if path.exists() and _identity(path) in read:
            raise ValueError(f"{path}: expected an output that is not an input too; give another --out")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path}: exists already; give another --out, or --overwrite")


def claim_folder(path: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """The same for a folder of results: new or empty, unless `overwrite`; never one that holds any of `inputs`."""
    for folder in inputs:
        if folder.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{path}: expected a folder apart from {folder}, which is read; give another --out")
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path}: expected a folder, found a file")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise FileExistsError(f"{path}: exists already and is not empty; give another --out, or --overwrite")


def _identity(path: Path) -> tuple[int, int]:
    """The same for every name of one file."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def write_evaluation(
    out: Path, text: str, record: dict[str, Any], draw: Callable[[Path], object] | None = None
) -> None:
    """`out`/evaluation.txt, evaluation.json and, where it is drawn, evaluation.png: all of them or none."""
    from pyramid.files import filling

    with filling(out, "evaluation.json") as part:
        (part / "evaluation.txt").write_text(text + "\n", encoding="utf8")
        (part / "evaluation.json").write_text(to_json(record, indent=2) + "\n", encoding="utf8")
        if draw is not None:
            draw(part / "evaluation.png")
