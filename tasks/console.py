"""What a verb says: results on stdout, all else on stderr; bars on a terminal, plain lines when piped.

With `--json` stdout carries one JSON object a line and nothing else: whatever libraries print goes to stderr.
Also here: which faults the user can mend (one line, exit 2) and which are ours (exit 1).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, TextIO, TypeVar

import typer

DONE, OUR_FAULT, USER_CAN_MEND = 0, 1, 2
_OURS = ("pyramid", "lm", "tasks")
_OUR_FILES = tuple(f"{Path(__file__).parents[1] / name}{os.sep}" for name in _OURS)
_IN_A_WORKER = "\nOriginal Traceback (most recent call last):\n"  # how torch tells the error of a loader's worker

Item = TypeVar("Item")


def user_can_mend(error: BaseException) -> bool:
    """True for what the user can put right: a file, a name, a value that one of our own checks refused.

    A ValueError that a library raises below us, or code in C on a line of ours, is a fault of ours: we should have
    checked before.
    """
    if isinstance(error, OSError):
        return True
    if not isinstance(error, ValueError):
        return False
    _, in_a_worker, trace = str(error).partition(_IN_A_WORKER)
    if in_a_worker:
        frames = re.findall(r'^ +File "(.+)", line .+\n +(.*)', trace, re.MULTILINE)
    else:
        frames = [(frame.filename, frame.line or "") for frame in traceback.extract_tb(error.__traceback__)]
    file, line = frames[-1] if frames else ("", "")
    return file.startswith(_OUR_FILES) and (not line or line.startswith("raise"))


def one_line(error: BaseException) -> str:
    """The message of an error on one line; an OSError of the system names its file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = str(error)
    if _IN_A_WORKER in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__


def to_json(record: Any, indent: int | None = None) -> str:
    """JSON, which has no NaN and no infinity: they become null. What it does not know becomes its `str`."""
    return json.dumps(_finite(record), ensure_ascii=False, default=str, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


class Console:
    """The voice of one verb; `writes`: it makes files. Use it as a context manager: while it is open, `--json` keeps
    stdout clean."""

    def __init__(self, verb: str, as_json: bool = False, writes: bool = False) -> None:
        self.verb, self.as_json, self.writes = verb, as_json, writes
        self.quiet = False  # where another process of the same run speaks
        self._stack = contextlib.ExitStack()
        self._out: TextIO = sys.stdout
        self._spoke = -math.inf  # seconds, when the last line of progress was

    def __enter__(self) -> Console:
        self._out = sys.stdout
        if self.as_json:
            self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = self._show_warning
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def emit(self, record: dict[str, Any], text: str | None = None) -> None:
        """One result: a JSON object with `--json`, else `text` (nothing if None)."""
        line = to_json(record) if self.as_json else text
        if line is not None:
            self._print(line, self._out)

    def note(self, text: str) -> None:
        """Something worth knowing that is not a result."""
        self._print(text, sys.stderr)

    def _print(self, line: str, file: TextIO) -> None:
        """Where nobody reads on, as in `pyramid ... | head`, a verb that `writes` files goes on in silence; another
        ends, and well: raises typer.Exit."""
        if self.quiet:
            return
        try:
            print(line, file=file, flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # for Python's own flush at the end, too
            if not self.writes:
                raise typer.Exit(DONE) from None

    def fault(self, error: BaseException) -> None:
        self.note(f"pyramid {self.verb}: {one_line(error)}")

    def each(self, items: Iterable[Path], work: Callable[[Path], None]) -> int:
        """Do the work on every file; a broken one is one line and the others go on. Returns the exit code."""
        code = DONE
        for path in items:
            try:
                work(path)
            except (OSError, ValueError) as error:
                code = self.refuse(path, error)
        return code

    def refuse(self, path: Path, error: Exception) -> int:
        """A file that cannot be worked on is one line; returns the exit code. Raises what the user cannot mend."""
        if not user_can_mend(error):
            raise error
        self.fault(error)
        self.emit({"input": str(path), "error": one_line(error)})
        return USER_CAN_MEND

    def track(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
        """The items, with progress on stderr: a bar on a terminal, a line every few seconds otherwise."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        if sys.stderr.isatty():
            yield from self._bar(items, what, total)
            return
        begin = self._spoke = time.monotonic()
        for count, item in enumerate(items):
            self.pulse(f"{what}: {count}{f'/{total}' if total else ''}", begin)
            yield item

    def pulse(self, text: str, begin: float) -> None:
        """How far it is, and since `begin` (of `time.monotonic`): a line every few seconds, where no bar is shown."""
        now = time.monotonic()
        if sys.stderr.isatty() or now - max(self._spoke, begin) < 5:
            return
        self.note(f"{text} after {now - begin:.0f} s")
        self._spoke = now

    def _bar(self, items: Iterable[Item], what: str, total: int | None) -> Iterator[Item]:
        from rich.console import Console as RichConsole
        from rich.progress import track

        yield from track(items, what, total=total, console=RichConsole(stderr=True), transient=True)

    def _show_warning(self, message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        """Ours are meant for the user and are shown in one line; those of libraries are not."""
        if category.__module__.split(".")[0] in _OURS:
            self.note(f"pyramid {self.verb}: warning: {' '.join(str(message).split())}")
