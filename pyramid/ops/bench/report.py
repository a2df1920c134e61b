"""What a benchmark says: a header with the machine and versions, a line a row, the best rivals in a summary, files."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pyramid.ops import _library
from pyramid.ops.bench.codes import SLOW_SETTINGS
from pyramid.ops.bench.measure import Row, Skipped, ceilings, device_name, geometric_mean

_LINE = "{:<18} {:<46} {:>9} {:<38} {:>9} {:>7} {:>9} {:>9}"
_COLUMNS = _LINE.format("op", "case", "ours, ms", "beside", "ms", "ratio", "ours, MiB", "MiB")


class Report:
    """Says rows as they come, and keeps them. `say_row(row, text)` and `say(text)` print, or give JSON."""

    def __init__(self, device: str, say_row: Callable[[Row, str], None], say: Callable[[str], None]) -> None:
        self.rows: list[Row] = []
        self.lines: list[str] = []
        self._say_row, self._say = say_row, say
        for line in [*header(torch.device(device)), _COLUMNS]:
            self._note(line)

    def add(self, result: Row | Skipped) -> None:
        if isinstance(result, Skipped):
            beside = f"{result.rival}: no time, " if result.rival else ""
            self._note(f"# {result.case.op} {result.case.name}: {beside}{result.reason}")
            return
        self.rows.append(result)
        self.lines.append(line(result))
        self._say_row(result, self.lines[-1])

    def close(self, out: Path | None = None) -> None:
        """Say the summary; write OUT.txt, what was said, and OUT.json, the rows."""
        for text in summary(self.rows):
            self._note(text)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            for suffix, content in ((".txt", "\n".join(self.lines)), (".json", json.dumps(self.rows, indent=1))):
                out.with_name(out.name + suffix).write_text(content + "\n", encoding="utf8")

    def _note(self, text: str) -> None:
        self.lines.append(text)
        self._say(text)


def header(device: torch.device) -> list[str]:
    """The machine, the versions of all that is timed, and what could slow a rival."""
    versions = [f"{name} {_version(name)}" for name in ("torch", "faiss-cpu", "vector-quantize-pytorch")]
    built = _library.build_info()
    architectures = f", CUDA kernels for {built.get('cuda_architectures')}" if device.type == "cuda" else ""
    lines = [
        f"# {device_name(device)}, {os.cpu_count()} cores{architectures}; {', '.join(versions)}",
        f"# ceilings: {ceilings(device)}",
        "# medians of alternating runs; ratio: the rival's time by ours; MiB: extra memory at the peak",
    ]
    for name in SLOW_SETTINGS:
        if name in os.environ:
            lines.append(f"# {name}={os.environ[name]} slows faiss down: taken away before faiss is loaded")
    return lines


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def line(row: Row) -> str:
    memory = ["-" if row[key] is None else f"{row[key]:.1f}" for key in ("ours_mib", "rival_mib")]
    times = [f"{row['ours_ms']:.3f}", row["rival"], f"{row['rival_ms']:.3f}", f"{row['ratio']:.2f}x"]
    return _LINE.format(row["op"], row["case"], *times, *memory)


def best_rivals(rows: Sequence[Row]) -> list[Row]:
    """Of each op and case the row with the fastest rival, in order."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["op"], row["case"])
        if key not in best or row["ratio"] < best[key]["ratio"]:
            best[key] = row
    return list(best.values())


def summary(rows: Sequence[Row]) -> list[str]:
    """One line an op: the best rival's ratio in each of its cases, and their geometric mean."""
    lines = []
    for op in dict.fromkeys(row["op"] for row in rows):
        ratios = [row["ratio"] for row in best_rivals(rows) if row["op"] == op]
        mean = f", geometric mean {geometric_mean(ratios):.2f}" if len(ratios) > 1 else ""
        lines.append(f"# {op}: the best rival's ratio {' '.join(f'{ratio:.2f}' for ratio in ratios)}{mean}")
    return lines
