"""Files that are written at once or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, for writing; at the end of the block what was written takes the name
    `path`. After an error nothing of it stays, and what `path` was before is left as it is. Who may read it is what the
    umask says, whoever wrote it (safetensors lets its owner alone)."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def filling(folder: str | Path, last: str) -> Iterator[Path]:
    """A temporary folder inside `folder`, for writing; at the end of the block all that lies in it moves into `folder`,
    in the place of what had its name. `last` is the file that tells of the others: it goes first and comes last. After
    an error nothing stays, what was in `folder` before is left as it is, and a `folder` that is new is removed."""
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    part = folder / f".{os.getpid()}.part"
    try:
        part.mkdir(parents=True)
        yield part
        old = part / ".old"
        old.mkdir()
        entries = sorted(path.name for path in part.iterdir() if path != old)
        for name in (last, *(name for name in entries if name != last)):  # first the one that would tell of the rest
            if (folder / name).exists():
                (folder / name).rename(old / name)
        for name in (*(name for name in entries if name != last), last):
            (part / name).rename(folder / name)
        made = []
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for path in made:
            with suppress(OSError):
                path.rmdir()
