"""`pyramid evaluate understanding`: what a language model reads from the first levels of clips of `shapes`, beside
answers that look at no clip. `understanding.py` measures."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tasks.console import DONE, Console
from tasks.files import claim_folder, write_evaluation
from tasks.models import load_lm, part_of
from tasks.options import Device, Json, Overwrite, Seed, check_device, parse_details

_FIRST = 200_000  # of the clips of a split; no other evaluation takes them


def understanding(
    model: Annotated[str, typer.Argument(help="A shipped model, a folder or a hub id.", show_default=False)],
    clips: Annotated[int, typer.Option("--clips", min=8, help="Held-out clips of each kind, a seed.")] = 200,
    detail: Annotated[str, typer.Option("--detail", "-d", help="Levels to read: 3, 1,3, 1-3 or all.")] = "all",
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Sets of clips, from --seed on.")] = 2,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the figures as .txt, .json and .png.", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """How right captions and answers are at every detail: clips of one object, combinations of shape, colour and motion
    that no training clip has, clips of one to three objects (questions alone)."""
    with Console("evaluate understanding", as_json, writes=out is not None) as console:
        if out is not None:
            claim_folder(out, overwrite)
        lm = load_lm(model, check_device(device))
        details = parse_details(detail, lm.num_levels)
        from pyramid.data.shapes import ShapesDataset, preset
        from tasks.understanding import Clips, score_captions, score_questions

        small = lm.tokenizer.config.size == (32, 32)
        one = "mini" if small else "single"
        kinds = [("one object", one, "test"), ("held-out combinations", one, "combinations")]
        kinds += [] if small else [("one to three objects", "full", "test")]
        rows: list[dict[str, Any]] = []
        for name, world, split in kinds:
            begin = time.monotonic()
            for number in range(seed, seed + seeds):
                dataset = ShapesDataset(preset(world), split)
                scored = Clips.of(lm, name, dataset, _FIRST + number * clips, clips)
                found = score_captions(lm, scored, details) if scored.single and "caption" in lm.config.tasks else []
                if "ask" in lm.config.tasks:
                    found += score_questions(lm, scored, details, ShapesDataset(preset(world), "train"), seed=number)
                for row in found:
                    rows.append({"seed": number} | row)
                    console.emit(rows[-1])
            console.note(f"{name}: {time.monotonic() - begin:.0f} s")
        from tasks.evaluate import describe_model, protocol_lines, table

        described = describe_model(model, lm, part_of(model, "lm"))
        protocol = {**described, "clips_a_kind": clips, "seeds": list(range(seed, seed + seeds)), "first_clip": _FIRST}
        lines: list[str] = []
        for of in ("captions", "questions"):
            part = [row for row in _means(rows) if row["of"] == of or (row["of"] == "most frequent" and _like(row, of))]
            if part:
                names = list(dict.fromkeys(key for row in part for key in row))
                lines += [of, *table(names, [[_cell(key, row.get(key)) for key in names] for row in part]), ""]
        text = "\n".join([*lines, "protocol", *protocol_lines(protocol)])
        console.emit({"protocol": protocol}, text)
        if out is not None:
            write_evaluation(out, text, {"rows": rows, "protocol": protocol}, partial(_draw, _means(rows)))
    return DONE


def _like(row: dict[str, Any], of: str) -> bool:
    return ("shape" in row) == (of == "captions")


def _means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over the seeds, with the range of "all" beside it."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["clips"], row["of"], row.get("detail"), "shape" in row), []).append(row)
    means = []
    for group in groups.values():
        mean: dict[str, Any] = {key: value for key, value in group[0].items() if key != "seed"}
        for key, value in mean.items():
            if isinstance(value, float):
                mean[key] = sum(row[key] for row in group) / len(group)
        mean["all_range"] = [min(row["all"] for row in group), max(row["all"] for row in group)]
        means.append(mean)
    return means


_PLAIN = {"detail", "tokens", "count", "a_second"}


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " to ".join(f"{100 * part:.1f}" for part in value)
    if name in _PLAIN or isinstance(value, str):
        return f"{value:.0f}" if isinstance(value, float) else str(value)
    return f"{100 * value:.1f} %"


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG: % right against the tokens that are read, a line a kind of clip and of question; dotted: without a
    clip."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axis = figure.subplots()
    for number, (name, of) in enumerate(dict.fromkeys((row["clips"], row["of"]) for row in rows if "detail" in row)):
        line = [row for row in rows if (row["clips"], row["of"]) == (name, of)]
        tokens, right = [row["tokens"] for row in line], [100 * row["all"] for row in line]
        (drawn,) = axis.plot(tokens, right, "os^vD"[number % 5] + "-", label=f"{of}, {name}")
        low, high = ([100 * row["all_range"][end] for row in line] for end in (0, 1))
        axis.fill_between(tokens, low, high, color=drawn.get_color(), alpha=0.2, linewidth=0)
        blind = [row for row in rows if row["clips"] == name and row["of"] == "most frequent" and _like(row, of)]
        for row in blind:
            axis.axhline(100 * row["all"], color=drawn.get_color(), linestyle=":", linewidth=1)
    axis.set_xscale("log")
    ticks = sorted({row["tokens"] for row in rows if "detail" in row})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(0, 103)
    axis.set_xlabel("tokens of a clip that are read")
    axis.set_ylabel("% right; dotted: the most frequent answer")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
