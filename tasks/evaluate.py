"""`pyramid evaluate`: how much a model keeps and how much it understands of held-out clips, with the protocol.

`evaluation.py` measures, `held_out.py` says on what, `curves.py` draws. `--out` writes evaluation.txt, evaluation.json
and evaluation.png.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks import evaluate_episodes, evaluate_lm, evaluate_understanding
from tasks.console import DONE, USER_CAN_MEND, Console
from tasks.files import claim_folder, write_evaluation
from tasks.models import fingerprint, load_tokenizer, part_of
from tasks.options import MAX_SEED, Device, Figures, Json, Overwrite, Seed, check_device, parse_size

if TYPE_CHECKING:
    from pyramid.tokenizer import PyramidTokenizer
    from tasks.evaluation import Evaluation
    from tasks.held_out import Source

app = typer.Typer(help="Score a model on held-out clips, with the protocol.", no_args_is_help=True)

app.command()(evaluate_lm.lm)
app.command()(evaluate_understanding.understanding)
app.command()(evaluate_episodes.episodes)

SHIPPED = "default"  # the word for the shipped model
_NAME = "evaluation"


@app.command()
def tokenizer(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] DATA",
            help="MODEL: a folder, a hub id, or the word default for the shipped one, which is also taken where DATA "
            "stands alone. DATA: shapes, shapes:full, a folder of clips, or files.",
            show_default=False,
        ),
    ],
    clips: Annotated[
        int | None,
        typer.Option(
            "--clips", min=1, help="Held-out clips a seed; by default 400 of shapes, else all.", show_default=False
        ),
    ] = None,
    probe_clips: Annotated[
        int, typer.Option("--probe-clips", min=2, help="Training clips a probe learns from.")
    ] = 2000,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="How many, from --seed on.")] = 2,
    split: Annotated[
        str | None,
        typer.Option("--split", help="By default test of shapes, val and test of a folder.", show_default=False),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="Field of metadata.jsonl to probe, repeat for more; by default label and alphabet.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="64 or 64x112; the model's by default.", show_default=False)
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="Frames a clip; the model's by default.", show_default=False)
    ] = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Rate; the model's by default, 0 for the file's.", show_default=False)
    ] = None,
    fit: Annotated[str, typer.Option("--fit", help="How frames come to size: crop, pad, stretch.")] = "crop",
    rounding: Annotated[
        bool, typer.Option("--rounding/--no-rounding", help="Round clips and reconstructions to 8 bits.")
    ] = True,
    policy: Annotated[str, typer.Option("--policy", help="Clips that cannot be read: skip, raise.")] = "skip",
    out: Figures = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Reconstruction and understanding at every detail.

    PSNR, SSIM, MS-SSIM, raw bits a pixel, usage and perplexity of the codes; and, at the same detail, what linear
    probes read from the codes: attributes of shapes, or the labels of a folder's metadata. Then the protocol: which
    clips, what was done to them, which model. With --json a row a detail, then the protocol.
    """
    with Console("evaluate tokenizer", as_json, writes=out is not None) as console:
        from tasks.evaluation import evaluate_tokenizer
        from tasks.held_out import SHAPES_CLIPS

        model, data = split_arguments(arguments)
        if seed + seeds - 1 > MAX_SEED:
            raise ValueError(f"--seed: expected at most {MAX_SEED - seeds + 1} for {seeds} seeds, got {seed}")
        if out is not None:
            claim_folder(out, overwrite, inputs=[path for path in map(Path, data) if path.is_dir()])
        folder = part_of(model, "tokenizer")
        loaded = load_tokenizer(model, check_device(device))
        shape: dict[str, Any] = {"size": size, "frames": frames, "fps": fps, "fit": fit}
        source = open_source(data, loaded, folder, split=split, targets=target, policy=policy, **shape)
        on_shapes = _is_shapes(data)
        result = evaluate_tokenizer(
            loaded,
            source,
            seeds=range(seed, seed + seeds),
            num_clips=SHAPES_CLIPS if clips is None and on_shapes else clips,
            probe_clips=probe_clips,
            rounding=rounding,
            track=console.track,
        )
        result.protocol.update(describe_model(model, loaded, folder))
        for name, reason in result.broken.items():
            console.note(f"pyramid evaluate tokenizer: {reason}")
            console.emit({"input": name, "error": reason})
        for row in result.rows:
            console.emit(row)
        console.emit({"protocol": result.protocol}, report(result))
        if out is not None:
            write(result, out)
        return USER_CAN_MEND if result.broken else DONE


def split_arguments(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The positional arguments as (model or None for the shipped one, data). Raises ValueError where several files
    stand alone."""
    if len(arguments) == 1:
        return None, arguments
    model, *data = arguments
    if Path(model).is_file():
        raise ValueError(
            f"{model}: expected a model folder, a hub id or the word {SHIPPED} before the data, got a file"
        )
    return (None if model == SHIPPED else model), data


def _is_shapes(data: list[str]) -> bool:
    return len(data) == 1 and data[0].split(":")[0] == "shapes" and not Path(data[0]).exists()


def open_source(
    data: list[str],
    tokenizer: PyramidTokenizer,
    folder: Path,
    *,
    size: str | None = None,
    frames: int | None = None,
    fps: float | None = None,
    fit: str = "crop",
    split: str | None = None,
    targets: list[str] | None = None,
    policy: str = "skip",
) -> Source:
    """What the words of the command line name, as clips of the model's size, length and rate unless told otherwise.

    Raises ValueError for what is no data, or options that it cannot have; FileNotFoundError where nothing is there.
    """
    from pyramid.data.folder import POLICIES
    from pyramid.data.shapes import preset
    from pyramid.data.transforms import FITS
    from tasks.files import find_clips
    from tasks.held_out import ShapesSource, clips_source

    config = tokenizer.config
    for name, value, known in (("--fit", fit, FITS), ("--policy", policy, POLICIES)):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if fps is not None and not 0 <= fps < float("inf"):
        raise ValueError(f"--fps: expected a rate, or 0 for the file's own, got {fps}")
    height, width = config.size if size is None else parse_size(size)
    num_frames = frames or config.num_frames
    rate = config.fps if fps is None else fps
    if _is_shapes(data):
        if targets:
            raise ValueError(f"--target: expected a folder of clips, got {data[0]}, whose attributes are all probed")
        trained = _train_config(folder).get("data", {})
        own = trained.get("preset", "mini") if trained.get("source", "shapes") == "shapes" else "mini"
        name = data[0].partition(":")[2] or own
        world = preset(name, height=height, width=width, num_frames=num_frames, fps=rate or config.fps)
        return ShapesSource(world, split or "test", name)
    paths = [Path(data[0])] if len(data) == 1 and Path(data[0]).is_dir() else find_clips(data)
    shape: dict[str, Any] = {"num_frames": num_frames, "size": (height, width), "fps": rate or None, "fit": fit}
    return clips_source(paths, policy=policy, split=split, targets=targets, **shape)


def _train_config(folder: Path) -> dict[str, Any]:
    """What `train_config.yaml` beside the weights says; empty where there is none."""
    import yaml

    path = folder / "train_config.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def describe_model(model: str | None, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """For the protocol: the model, its hash, and whether its weights are a moving average."""
    run = _train_config(folder).get("run")
    decay = run.get("ema_decay") if isinstance(run, dict) else None
    if decay is None:
        average = "unknown: the model's folder has no train_config.yaml that says"
    else:
        average = f"moving average of the weights, decay {decay:g}" if decay else "none: the last weights"
    return {"model": SHIPPED if model is None else model, "model_hash": model_hash(tokenizer, folder), "ema": average}


def model_hash(tokenizer: Any, folder: Path) -> str:
    """16 hexadecimal digits over config.json, every weight and the word table: of what they hold, as two files of the
    same weights need not be equal (safetensors writes its header in no fixed order)."""
    config = json.loads((folder / "config.json").read_text(encoding="utf8"))
    return fingerprint(tokenizer, json.dumps(config, sort_keys=True))


def write(result: Evaluation, out: Path) -> None:
    """Rows, protocol and what was broken, with curves."""
    from tasks.curves import draw_curves

    record = {"rows": result.rows, "protocol": result.protocol, "broken": result.broken}
    write_evaluation(out, report(result), record, partial(draw_curves, result))


# ---------------------------------------------------------------------------------------------- text


def report(result: Evaluation) -> str:
    """Two tables, a row a detail, and the protocol."""
    from tasks.evaluation import COVERAGES

    rows, protocol = result.rows, result.protocol
    scales = protocol["ms_ssim_scales"]
    titles = [
        "detail",
        "tokens",
        "bits/pixel",
        "PSNR, dB",
        "SSIM",
        f"MS-SSIM ({scales} scales)" if scales else "MS-SSIM",
    ]
    kept = [
        [
            str(row["detail"]),
            str(row["tokens"]),
            f"{row['bpp']:.4g}",
            _figure(row["psnr"], row["spread"]["psnr"], 2),
            _figure(row["ssim"], row["spread"]["ssim"], 3),
            _figure(row["ms_ssim"], row["spread"]["ms_ssim"], 3),
            row["codebook"],
            f"{row['level_tokens']}",
            f"{100 * row['usage']:.3g} % of {row['codebook_size']}",
            f"{row['perplexity']:.4g}",
        ]
        for row in rows
    ]
    lines = ["Reconstruction, and the level that each detail adds"]
    lines += table([*titles, "level of", "tokens", "codes used", "perplexity"], kept)
    if rows[0]["understanding"]:
        names = list(rows[0]["understanding"])
        known = [
            [str(row["detail"]), str(row["tokens"])]
            + [_percent(row["understanding"][name], row["spread"]["understanding"][name]) for name in names]
            for row in rows
        ]
        known.append(["chance", ""] + [_percent(rows[0]["chance"][name]) for name in names])
        lines += ["", "Understanding: % right, linear probes on the codes up to each detail"]
        lines += table(["detail", "tokens", *names], known)
    if any(row["coverage"] is not None for row in rows):
        said = [
            [str(row["detail"]), str(row["tokens"])]
            + ["none" if row[name] is None else _percent(row[name], row["spread"][name]) for name in COVERAGES]
            for row in rows
            if row["coverage"] is not None
        ]
        lines += ["", "Words: % of what captions say that some word names; and of what another clip's caption says"]
        lines += table(["detail", "tokens", "own", "another's"], said)
    if len(protocol["seeds"]) > 1:
        same = len({*protocol["clips_a_seed"], protocol["clips"]}) == 1
        lines += ["", f"Means of {len(protocol['seeds'])} seeds, +- half their range"]
        lines[-1] += "; all seeds score the same clips, and differ in what their probes learn from" if same else ""
    return "\n".join([*lines, "", "Protocol", *protocol_lines(protocol)])


def _figure(value: float | None, spread: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f} +-{spread or 0:.{digits}f}"


def _percent(value: float, spread: float | None = None) -> str:
    return f"{100 * value:.1f}" + ("" if spread is None else f" +-{100 * spread:.1f}")


def table(titles: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [titles, *rows]]


def protocol_lines(protocol: dict[str, Any], indent: str = "  ") -> list[str]:
    lines = []
    for name, value in protocol.items():
        key = name.replace("_", " ")
        if isinstance(value, dict) and any(isinstance(part, str | dict) for part in value.values()):
            lines += [f"{indent}{key}:", *protocol_lines(value, indent + "  ")]
        elif isinstance(value, dict):
            lines.append(f"{indent}{key}: " + ", ".join(f"{part} {_plain(what)}" for part, what in value.items()))
        else:
            lines.append(f"{indent}{key}: {_plain(value)}")
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)
