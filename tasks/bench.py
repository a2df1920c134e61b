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
    names: Annotated[list[str] | None, typer.Argument(metavar="[OP]...", help="Which ops; all by default.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few repeats.")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Time the ops: native, reference, torch.compile and other libraries; ratios are what counts."""
    with Console("bench ops", as_json) as console:
        from pyramid.ops import bench

        for row in bench.run(names or None, device=check_device(device), quick=quick):
            console.emit(row, "  ".join(f"{key} {value}" for key, value in row.items()))
    return DONE
