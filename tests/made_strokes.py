"""Small zips of strokes in Omniglot's format, for the tests of handwriting."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

LINE = [(20.0, 50.0, 0.0), (80.0, 50.0, 1000.0)]  # x, y downwards, milliseconds


def text(*strokes) -> str:
    """The file of some strokes, each a list of (x, y, t)."""
    lines = ["START"]
    for stroke in strokes:
        lines += [f"{x:f},{-y:f},{t:.0f}" for x, y, t in stroke]
        lines.append("BREAK")
    return "\n".join(lines) + "\n"


def arrays(*strokes) -> list[np.ndarray]:
    """The same as `parse_strokes` gives it."""
    return [np.array(stroke, float) for stroke in strokes]


def write_zip(path: Path, members: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def member(alphabet: str, character: int, drawer: int) -> str:
    return f"strokes/{alphabet}/character{character:02d}/{100 * character:04d}_{drawer:02d}.txt"


def small_set(path: Path, alphabet: str = "Greek", drawers=(1, 16, 17)) -> Path:
    """Two characters: one stroke, and one of two strokes with a dot; with what a Mac adds to a zip."""
    members: dict[str, str | bytes] = {"strokes/.DS_Store": b"\0", f"__MACOSX/{member(alphabet, 1, 1)}": b"\0"}
    for drawer in drawers:
        slope = [(20.0, 40.0, 0.0), (80.0, 40.0 + drawer, 900.0)]
        members[member(alphabet, 1, drawer)] = text(slope)
        members[member(alphabet, 23, drawer)] = text(slope, [(50.0, 80.0, 2000.0)])
    return write_zip(path, members)
