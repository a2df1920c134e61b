"""What a verb says: results on stdout, all else on stderr; bars on a terminal, plain lines when piped.

With `--json` stdout carries one JSON object a line and nothing else: whatever libraries print goes to stderr.
Also here: which faults the user can mend (one line, exit 2) and which are ours (exit 1).
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, TextIO, TypeVar

DONE, OUR_FAULT, USER_CAN_MEND = 0, 1, 2
_OURS = ("pyramid", "lm", "tasks")

Item = TypeVar("Item")


def user_can_mend(error: BaseException) -> bool:
    """True for what the user can put right: a file, a name, a value that one of our own checks refused.

    A ValueError that a library raises below us is a fault of ours: we should have checked before.
    """
    if isinstance(error, BrokenPipeError):
        return False
    if isinstance(error, OSError):
        return True
    if not isinstance(error, ValueError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0] in _OURS


def one_line(error: BaseException) -> str:
    """The message of an error on one line; an OSError of the system names its file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


class Console:
    """The voice of one verb. Use it as a context manager: while it is open, `--json` keeps stdout clean."""

    def __init__(self, verb: str, as_json: bool = False) -> None:
        self.verb, self.as_json = verb, as_json
        self._stack = contextlib.ExitStack()
        self._out: TextIO = sys.stdout

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
        if self.as_json:
            print(json.dumps(record, ensure_ascii=False, default=str), file=self._out, flush=True)
        elif text is not None:
            print(text, file=self._out, flush=True)

    def note(self, text: str) -> None:
        """Something worth knowing that is not a result."""
        print(text, file=sys.stderr, flush=True)

    def fault(self, error: BaseException) -> None:
        self.note(f"pyramid {self.verb}: {one_line(error)}")

    def each(self, items: Iterable[Path], work: Callable[[Path], None]) -> int:
        """Do the work on every file; a broken one is one line and the others go on. Returns the exit code."""
        code = DONE
        for path in items:
            try:
                work(path)
            except (OSError, ValueError) as error:
                if not user_can_mend(error):
                    raise
                self.fault(error)
                self.emit({"input": str(path), "error": one_line(error)})
                code = USER_CAN_MEND
        return code

    def track(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
        """The items, with progress on stderr: a bar on a terminal, a line every few seconds otherwise."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        if sys.stderr.isatty():
            yield from self._bar(items, what, total)
            return
        begin = last = time.monotonic()
        for count, item in enumerate(items):
            now = time.monotonic()
            if now - last >= 5:
                self.note(f"{what}: {count}{f'/{total}' if total else ''} after {now - begin:.0f} s")
                last = now
            yield item

    def _bar(self, items: Iterable[Item], what: str, total: int | None) -> Iterator[Item]:
        from rich.console import Console as RichConsole
        from rich.progress import track

        yield from track(items, what, total=total, console=RichConsole(stderr=True), transient=True)

    def _show_warning(self, message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        """Ours are meant for the user and are shown in one line; those of libraries are not."""
        if category.__module__.split(".")[0] in _OURS:
            self.note(f"pyramid {self.verb}: warning: {' '.join(str(message).split())}")
