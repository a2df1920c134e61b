"""`pyramid bench`: our kernels beside what one would call otherwise, timed side by side in one run."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.console import DONE, Console
from tasks.options import Device, Json, check_device

app = typer.Typer(help="Time our kernels beside their alternatives.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Keeps `ops` a word of its own while it is the only benchmark."""


@app.command()
def ops(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[OP]...", help="Which ops; all by default.", show_default=False)
    ] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Time the ops beside torch and other libraries; the ratio is what counts."""
    with Console("bench ops", as_json) as console:
        from pyramid.ops import bench

        cases = bench.default_cases(check_device(device))
        known = sorted({case.op for case in cases})
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise ValueError(f"OP: expected some of {', '.join(known)}, got {unknown[0]!r}")
        if not as_json:
            console.emit({}, _HEADER)
        for case in cases:
            for row in bench.run([case]) if not names or case.op in names else ():
                console.emit(row, _line(row))
    return DONE


_HEADER = f"{'op':14}{'case':28}{'ours, ms':>10}  {'beside':20}{'ms':>10}{'ratio':>8}"


def _line(row: dict) -> str:
    ours, rival = f"{row['ours_ms']:.2f}", f"{row['rival_ms']:.2f}"
    return f"{row['op']:14}{row['case']:28}{ours:>10}  {row['rival']:20}{rival:>10}{row['ratio']:>7.2f}x"
