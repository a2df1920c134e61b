"""`pyramid train tokenizer|lm`: dataclasses are the schema, YAML files and key=value the differences."""

from __future__ import annotations

import dataclasses
import importlib.resources
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tasks.console import DONE, Console
from tasks.files import claim_folder
from tasks.options import MAX_SEED, Json, Out, Overwrite, check_device

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

T = TypeVar("T")

app = typer.Typer(help="Train a tokenizer, or a language model over its tokens.", no_args_is_help=True)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Such as run.max_minutes=5.")]
Configs = Annotated[
    list[str] | None,
    typer.Option("--config", "-c", help="YAML file or the name of a shipped one; repeat to layer.", show_default=False),
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the whole config as YAML, and stop.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]
Gates = Annotated[bool, typer.Option("--gates", help="Learn one clip and sixteen by heart first; stop if that fails.")]
Check = Annotated[
    bool, typer.Option("--check", help="The gates and the forecast alone; nothing is trained or written.")
]
ForecastOnly = Annotated[bool, typer.Option("--forecast", help="The forecast alone, from a few real steps.")]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, max=MAX_SEED, help="Short for run.seed=N.", show_default=False)
]
Device = Annotated[
    str | None, typer.Option("--device", help="Short for run.device=NAME: auto, cpu, cuda, mps.", show_default=False)
]


@app.command()
def tokenizer(
    overrides: Overrides = None,
    config: Configs = None,
    print_config: PrintConfig = False,
    out: Out = Path("runs/tokenizer"),
    overwrite: Overwrite = False,
    resume: Resume = False,
    gates: Gates = False,
    check: Check = False,
    forecast: ForecastOnly = False,
    seed: Seed = None,
    device: Device = None,
    as_json: Json = False,
) -> int:
    """Train a tokenizer; writes a model folder."""
    from pyramid.train import TrainTokenizerConfig, check_gates, prepare, train_tokenizer

    with Console("train tokenizer", as_json, writes=True) as console:
        console.quiet = _rank() > 0
        cfg = read_config(TrainTokenizerConfig, "pyramid", config, overrides, seed, device, out if resume else None)
        if print_config:
            return _print(console, cfg)
        if not (resume or check or forecast):
            _claim(cfg, out, overwrite)
        quiet_lightning()
        if gates or check:
            _gates(console, cfg, check_gates)
        if check or forecast:
            _forecast(console, _measure(cfg, prepare))
            return DONE
        return _run(console, cfg, train_tokenizer, out, resume)


@app.command()
def lm(
    overrides: Overrides = None,
    config: Configs = None,
    print_config: PrintConfig = False,
    out: Out = Path("runs/lm"),
    overwrite: Overwrite = False,
    resume: Resume = False,
    gates: Gates = False,
    check: Check = False,
    forecast: ForecastOnly = False,
    seed: Seed = None,
    device: Device = None,
    as_json: Json = False,
) -> int:
    """Train a language model over a tokenizer's pyramids; writes a model folder."""
    from lm.train import TrainLMConfig, check_gates, prepare, train_lm
    from tasks.models import part_of, shipped_names

    with Console("train lm", as_json, writes=True) as console:
        console.quiet = _rank() > 0
        cfg = read_config(TrainLMConfig, "lm", config, overrides, seed, device, out if resume else None)
        if not cfg.tokenizer:
            cfg = dataclasses.replace(cfg, tokenizer="mini")
            console.note("train lm: over the shipped tokenizer mini; another is chosen by tokenizer=NAME or FOLDER")
        if cfg.tokenizer in shipped_names():
            cfg = dataclasses.replace(cfg, tokenizer=str(part_of(cfg.tokenizer, "tokenizer")))
        if print_config:
            return _print(console, cfg)
        if not (resume or check or forecast):
            _claim(cfg, out, overwrite)
        quiet_lightning()
        if gates or check:
            _gates(console, cfg, check_gates)
        if check or forecast:
            _forecast(console, _measure(cfg, prepare))
            return DONE
        return _run(console, cfg, train_lm, out, resume)


def read_config(
    schema: type[T],
    package: str,
    files: list[str] | None,
    overrides: list[str] | None,
    seed: int | None = None,
    device: str | None = None,
    resumed: Path | None = None,
) -> T:
    """Defaults < the config of the run that is resumed < files < key=value < the short flags."""
    from pyramid.config import load

    paths = [config_path(name, package) for name in files or ()]
    if resumed is not None:
        from pyramid.training import CONFIG

        if not (resumed / CONFIG).is_file():
            raise FileNotFoundError(f"--resume: expected a run in {resumed}, found no {CONFIG}")
        paths.insert(0, resumed / CONFIG)
    short = [f"run.seed={seed}"] if seed is not None else []
    short += [f"run.device={_accelerator(device)}"] if device is not None else []
    return load(schema, *paths, overrides=[*(overrides or ()), *short])


def config_path(name: str, package: str) -> Path:
    """A YAML file, or one of those that ship with `package`. Raises FileNotFoundError with the known names."""
    if Path(name).is_file():
        return Path(name)
    shipped = Path(str(importlib.resources.files(package))) / "configs"
    known = {path.stem: path for path in sorted(shipped.glob("*.yaml"))}
    if name.removesuffix(".yaml") in known:
        return known[name.removesuffix(".yaml")]
    raise FileNotFoundError(
        f"--config {name}: expected a YAML file or one of {', '.join(known) or 'none'}, found nothing"
    )


def _print(console: Console, cfg: Any) -> int:
    from pyramid.config import to_dict, to_yaml

    console.emit(to_dict(cfg), to_yaml(cfg).rstrip())
    return DONE


def _rank() -> int:
    """Of this process in a torchrun; 0 without."""
    return int(os.environ.get("RANK", 0))


def _claim(cfg: Any, out: Path, overwrite: bool) -> None:
    if _rank() > 0:  # the first process does it for all
        return
    read = (cfg.data.path, cfg.initialize, getattr(cfg, "tokenizer", None))
    claim_folder(out, overwrite, inputs=[Path(name) for name in read if name])


def _gates(console: Console, cfg: Any, check_gates: Callable[..., None]) -> None:
    """Raises GateError, which ends the verb with one line, at the first gate that is not passed."""

    def report(gate: Any) -> None:
        console.emit({"gate": gate.name, "passed": True, "found": gate.found})
        console.note(f"{console.verb}: {gate.sentence()}")

    check_gates(cfg, report)


def _measure(cfg: Any, prepare: Callable[..., Any]) -> Any:
    from pyramid.training import make_trainer
    from pyramid.training_forecast import measure

    module, data = prepare(cfg)
    return measure(module, data, make_trainer)


def _forecast(console: Console, forecast: Any) -> None:
    console.emit({"forecast": dataclasses.asdict(forecast)})
    console.note(f"{console.verb}: {forecast.sentence()}")


def _run(console: Console, cfg: Any, train: Callable[..., Any], out: Path, resume: bool) -> int:
    from tasks.training_progress import TrainingProgress

    progress = TrainingProgress(console, console.verb)
    train(cfg, out, callbacks=[progress], resume=resume, forecast=partial(_forecast, console))
    last = progress.history[-1] if progress.history else {}
    console.emit({"out": str(out), **last}, f"{out}: trained in {last.get('seconds', 0):.0f} s")
    return DONE


def quiet_lightning() -> None:
    """Lightning's notes about devices and loaders are not for the reader of a bar."""
    import logging

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _accelerator(name: str) -> str:
    """Raises ValueError for what a run cannot train on here; which of several GPUs is CUDA_VISIBLE_DEVICES' say."""
    if name not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"--device: expected auto, cpu, cuda or mps, got {name!r}")
    return name if name == "auto" else check_device(name)
