"""Omniglot's timed strokes: handwritten characters of many alphabets, as their drawers' pens moved (Lake, Salakhutdinov
and Tenenbaum, Science 2015).

The set comes as zips of text files, `.../ALPHABET/characterNN/MMMM_DD.txt`, one a drawing; DD is the drawer, 1 to 20.
A file holds

    START                        once
    17.64,-26.86,0               x, y, t: pixels of a 105x105 canvas, y downwards from 0 to -105, and milliseconds
    BREAK                        after each stroke

Not here: how ink looks (`ink.py`), and the pictures of the same drawings, which have no times.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CANVAS = 105
TRAIN_DRAWERS = range(1, 17)  # the rest validate: nobody who wrote a clip of one split wrote one of the other

_MEMBER = re.compile(r"(?:.*/)?(?P<alphabet>[^/]+)/character(?P<character>\d+)/\d+_(?P<drawer>\d+)\.txt")
_MAX_BYTES = 1 << 20  # of one file; the longest of the set has 13,000
_NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()


class StrokeError(ValueError):
    """A stroke file that cannot be read: zip, file, what was expected, what came."""


@dataclass(frozen=True)
class Drawing:
    """One drawing of a zip; its strokes are read by `read_strokes`."""

    archive: Path
    member: str
    alphabet: str
    character: int
    drawer: int

    @property
    def key(self) -> str:
        """Which drawing it is, whatever the zip: `Greek/character23/05`."""
        return f"{self.label}/{self.drawer:02d}"

    @property
    def label(self) -> str:
        """The class: `Greek/character23`."""
        return f"{self.alphabet}/character{self.character:02d}"

    @property
    def split(self) -> str:
        return "train" if self.drawer in TRAIN_DRAWERS else "val"

    def caption(self, num_strokes: int) -> str:
        """`writing Greek character 23 in four strokes`."""
        count = _NUMBERS[num_strokes - 1] if num_strokes <= len(_NUMBERS) else str(num_strokes)
        name = self.alphabet.replace("_", " ")
        return f"writing {name} character {self.character} in {count} stroke{'s' * (num_strokes > 1)}"


def find_drawings(archives: Iterable[str | os.PathLike]) -> tuple[list[Drawing], int]:
    """The drawings of some zips, sorted by key, and how many came twice: some zips of the set share alphabets. Only the
    lists of contents are read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a zip, no stroke file in it, or two different files of one drawing.
    """
    found: dict[str, tuple[Drawing, int]] = {}
    repeated = 0
    for archive in map(Path, archives):
        for drawing, checksum in _drawings_of(archive):
            first, same = found.setdefault(drawing.key, (drawing, checksum))
            repeated += first is not drawing
            if checksum != same:
                raise ValueError(
                    f"{archive}: expected each drawing once, got another {drawing.member} than {first.archive} has"
                )
    return [found[key][0] for key in sorted(found)], repeated


def _drawings_of(archive: Path) -> list[tuple[Drawing, int]]:
    if not archive.is_file():
        what = "a folder" if archive.is_dir() else "nothing"
        raise FileNotFoundError(f"{archive}: expected a zip of Omniglot's strokes, found {what}")
    try:
        with zipfile.ZipFile(archive) as file:
            members = [(info.filename, info.CRC) for info in file.infolist() if not info.is_dir()]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive}: expected a zip of Omniglot's strokes, got another file ({error})") from None
    matches = [(_MEMBER.fullmatch(name), checksum) for name, checksum in members if not name.startswith("__MACOSX/")]
    found = [
        (Drawing(archive, match[0], match["alphabet"], int(match["character"]), int(match["drawer"])), checksum)
        for match, checksum in matches
        if match
    ]
    if not found:
        pictures = sum(name.endswith(".png") for name, _ in members)
        came = f"{pictures} pictures; the strokes are in another zip" if pictures else f"{len(members)} other files"
        raise ValueError(f"{archive}: expected stroke files ALPHABET/characterNN/NNNN_NN.txt, got {came}")
    return found


def read_strokes(archive: zipfile.ZipFile, drawing: Drawing) -> list[np.ndarray]:
    """The strokes of one drawing, as `parse_strokes` gives them.

    Raises:
        StrokeError: the file cannot be unpacked or is malformed.
    """
    where = f"{drawing.archive}, {drawing.member}"
    try:
        with archive.open(drawing.member) as file:
            data = file.read(_MAX_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted, unknown method
        raise StrokeError(f"{where}: expected a file that can be unpacked, got {error}") from None
    if len(data) > _MAX_BYTES:
        raise StrokeError(f"{where}: expected at most {_MAX_BYTES} bytes of strokes, got more")
    return parse_strokes(data, where)


def parse_strokes(data: bytes, where: str) -> list[np.ndarray]:
    """The strokes of a file, in the order they were drawn.

    Args:
        data: the file.
        where: its name, for errors.

    Returns:
        A float64 (N, 3) a stroke, N >= 1: x to the right and y downwards in pixels of the canvas, t in milliseconds
        from the first point. Time never runs backwards: a step back, which clocks did by up to 23 ms in the set, waits.

    Raises:
        StrokeError: a line that is none of the three above, a number that is not finite or far off the canvas, a stroke
            without a point or without its BREAK, no stroke.
    """
    strokes: list[list[tuple[float, float, float]]] = [[]]
    lines = [line.strip() for line in data.decode("ascii", errors="replace").splitlines()]
    for number, line in enumerate(lines, 1):
        if line == "BREAK" and strokes[-1]:
            strokes.append([])
        elif line and not (line == "START" and strokes == [[]]):
            strokes[-1].append(_point_of(line, f"{where}, line {number}"))
    if strokes.pop():
        raise StrokeError(f"{where}: expected BREAK after the last stroke, got the end of the file")
    if not strokes:
        raise StrokeError(f"{where}: expected at least one stroke, got none")
    points = np.concatenate([np.asarray(stroke, np.float64) for stroke in strokes])
    points[:, 2] = np.maximum.accumulate(points[:, 2] - points[0, 2])
    return np.split(points, np.cumsum([len(stroke) for stroke in strokes])[:-1])


def _point_of(line: str, where: str) -> tuple[float, float, float]:
    try:
        x, y, time = map(float, line.split(","))
    except ValueError:
        raise StrokeError(f"{where}: expected x,y,t or BREAK after a stroke, got {line[:40]!r}") from None
    if not (-CANVAS <= x <= 2 * CANVAS and -CANVAS <= -y <= 2 * CANVAS and 0 <= time < 1e9):
        raise StrokeError(f"{where}: expected a point of a {CANVAS}x{CANVAS} canvas and its time, got {line[:40]!r}")
    return x, -y, time
