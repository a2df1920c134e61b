"""`pyramid bench`: our kernels beside what one would call otherwise, timed side by side in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tasks.console import DONE, Console
from tasks.options import Device, Json, Overwrite, check_device

app = typer.Typer(help="Time our kernels beside their alternatives.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Keeps `ops` a word of its own while it is the only benchmark."""


@app.command()
def ops(
    op: Annotated[
        list[str] | None,
        typer.Option("--op", help="Only this op, or tokenizer_step, lm_step; repeat for more.", show_default=False),
    ] = None,
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write OUT.txt and OUT.json too.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Time the ops, and whole training steps, beside torch and other libraries; the ratio is what counts."""
    with Console("bench ops", as_json, writes=out is not None) as console:
        from pyramid.ops import bench
        from tasks import training_steps

        cases = [*bench.default_cases(check_device(device)), *training_steps.cases(device)]
        known = (*bench.OPS, *training_steps.OPS)
        unknown = [name for name in op or () if name not in known]
        if unknown:
            raise ValueError(f"--op: expected some of {', '.join(known)}, got {unknown[0]!r}")
        taken = [path for path in _files(out) if path.exists()]
        if taken and not overwrite:
            raise FileExistsError(f"{taken[0]}: exists already; give another --out, or --overwrite")
        say = console.note if as_json else (lambda text: console.emit({}, text))
        report = bench.Report(device, console.emit, say)
        for case in cases:
            for result in bench.run([case]) if not op or case.op in op else ():
                report.add(result)
        report.close(out)
    return DONE


def _files(out: Path | None) -> list[Path]:
    return [] if out is None else [out.with_name(out.name + suffix) for suffix in (".txt", ".json")]
