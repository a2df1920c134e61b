"""`pyramid bench`: our kernels, the tokenizer and the language model beside what one would call otherwise, in one
run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tasks.console import DONE, Console, to_json
from tasks.options import Device, Dtype, Json, Overwrite, check_device, check_dtype

app = typer.Typer(help="Time kernels, tokenizer and language model beside their alternatives.", no_args_is_help=True)

Files = Annotated[Path | None, typer.Option("--out", "-o", help="Write OUT.txt and OUT.json too.", show_default=False)]


@app.command()
def ops(
    op: Annotated[
        list[str] | None,
        typer.Option("--op", help="Only this op, or tokenizer_step, lm_step; repeat for more.", show_default=False),
    ] = None,
    device: Device = "cpu",
    out: Files = None,
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
        _claim(out, overwrite)
        say = console.note if as_json else (lambda text: console.emit({}, text))
        report = bench.Report(device, console.emit, say)
        for case in cases:
            for result in bench.run([case]) if not op or case.op in op else ():
                report.add(result)
        report.close(out)
    return DONE


@app.command()
def tokenizer(
    config: Annotated[
        str, typer.Option("--config", "-c", help="A shipped preset or a YAML file, with random weights.")
    ] = "base",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model folder instead.", show_default=False)
    ] = None,
    device: Device = "cpu",
    out: Files = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Frames a second of encoding and decoding, memory, and how both grow with a clip's length and size.

    Beside the recorded figures of other tokenizers of the same stride.
    """
    with Console("bench tokenizer", as_json, writes=out is not None) as console:
        from pyramid.train import TrainTokenizerConfig
        from tasks import tokenizer_speed
        from tasks.models import load_tokenizer
        from tasks.train import read_config

        _claim(out, overwrite)
        check_device(device)
        if model is not None:
            timed, name = load_tokenizer(model, device), Path(model).name
        else:
            timed = tokenizer_speed.random_tokenizer(
                read_config(TrainTokenizerConfig, "pyramid", [config], None).model, device
            )
            name = Path(config).stem
        lines, rows = tokenizer_speed.header(timed, name), []
        for line in lines:
            (console.note if as_json else (lambda text: console.emit({}, text)))(line)
        for row in tokenizer_speed.rows(timed, name):
            rows.append(row)
            lines.append(tokenizer_speed.line(row))
            console.emit(row, lines[-1])
        _write(out, lines, rows)
    return DONE


@app.command()
def generate(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A shipped model, a folder or a hub id.", show_default=False)
    ] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Files = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Time every way of writing clips beside transformers' own generate, on the same backbone and number of tokens."""
    with Console("bench generate", as_json, writes=out is not None) as console:
        from tasks import generation_speed
        from tasks.models import DEFAULTS, load_lm

        check_dtype(dtype)
        _claim(out, overwrite)
        lm = load_lm(model, check_device(device), dtype)
        lines, rows = generation_speed.header(lm, Path(model or DEFAULTS["lm"]).name), []
        for line in lines:
            (console.note if as_json else (lambda text: console.emit({}, text)))(line)
        for row in generation_speed.rows(lm):
            rows.append(row)
            lines.append(generation_speed.line(row))
            console.emit(row, lines[-1])
        _write(out, lines, rows)
    return DONE


def _write(out: Path | None, lines: list[str], rows: list[dict[str, Any]]) -> None:
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in zip(_files(out), ("\n".join(lines), to_json(rows, indent=1)), strict=True):
        path.write_text(text + "\n", encoding="utf8")


def _claim(out: Path | None, overwrite: bool) -> None:
    taken = [path for path in _files(out) if path.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{taken[0]}: exists already; give another --out, or --overwrite")


def _files(out: Path | None) -> list[Path]:
    return [] if out is None else [out.with_name(out.name + suffix) for suffix in (".txt", ".json")]
