"""`pyramid evaluate understanding`: what is understood of clips from the first levels of their pyramids.

- classes, of any clips that have them, by small networks that are fitted here (`class_reading.py`);
- captions and questions of `shapes` by the model itself (`understanding.py`), and captions of a folder's clips
  (`caption_reading.py`);
- Omniglot's one-shot benchmark (`one_shot.py`).

Each beside what looks at no clip, and what learns nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.console import DONE, USER_CAN_MEND, Console
from tasks.files import claim_folder, write_evaluation
from tasks.models import load_lm, load_tokenizer, part_of
from tasks.options import Device, Figures, Json, OneShot, Overwrite, Seed, Seeds, check_device, parse_details

if TYPE_CHECKING:
    from lm.model import PyramidLM
    from pyramid.tokenizer import PyramidTokenizer
    from tasks.class_reading import Budget
    from tasks.held_out import Source
    from tasks.one_shot import Run

Row = dict[str, Any]
_FIRST = 200_000  # of the clips of a split of shapes; no other evaluation takes them


def understanding(
    model: Annotated[str, typer.Argument(help="A shipped model, a folder or a hub id.", show_default=False)],
    data: Annotated[
        list[str] | None,
        typer.Argument(help="shapes, shapes:PRESET, or a folder of clips with splits.", show_default="shapes"),
    ] = None,
    clips: Annotated[int, typer.Option("--clips", min=8, help="Held-out clips of each kind, a seed.")] = 200,
    detail: Annotated[str, typer.Option("--detail", "-d", help="Levels to read: 3, 1,3, 1-3 or all.")] = "all",
    seeds: Seeds = 2,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0, help="For each classifier and seed; 0 leaves classes out.")
    ] = 2.0,
    pixel_minutes: Annotated[
        float | None,
        typer.Option(
            "--pixel-minutes",
            min=0,
            help="For that of pixels, such as all the time that the words were trained for; by default as the others.",
            show_default=False,
        ),
    ] = None,
    train: Annotated[int, typer.Option("--train", min=16, help="Training clips of the classifiers, at most.")] = 4000,
    targets: Annotated[
        list[str] | None,
        typer.Option("--target", help="Field of a folder's metadata that names classes. Repeat.", show_default=False),
    ] = None,
    one_shot: OneShot = None,
    out: Figures = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """What is understood of clips at every detail, beside baselines.

    Classes (the attributes of `shapes`, the labels of a folder's clips) by networks fitted for --minutes on the codes,
    and a 3-D CNN on the pixels for as long; captions and answers by the model.
    """
    with Console("evaluate understanding", as_json, writes=out is not None) as console:
        if out is not None:
            claim_folder(out, overwrite, inputs=[Path(name) for name in data or [] if Path(name).exists()])
        lm = _lm_of(model, check_device(device))
        tokenizer = load_tokenizer(model, check_device(device)) if lm is None else lm.tokenizer
        details = parse_details(detail, tokenizer.num_levels)
        if one_shot is not None and not minutes:
            raise ValueError("--one-shot: expected --minutes above 0, got 0")
        from tasks.class_reading import Budget
        from tasks.evaluate import describe_model, open_source
        from tasks.one_shot import read_runs

        runs = [] if one_shot is None else read_runs(one_shot, tokenizer.config.size)

        chosen = data or ["shapes:mini" if tokenizer.config.size == (32, 32) else "shapes:single"]
        source = open_source(chosen, tokenizer, part_of(model, "tokenizer"), targets=targets)
        numbers = range(seed, seed + seeds)
        budget = Budget(train, minutes, minutes if pixel_minutes is None else pixel_minutes)
        report = _Report(console)
        writer = lm if lm is not None and "caption" in lm.config.tasks else None
        if chosen[0].startswith("shapes") and lm is not None:
            _read_shapes(lm, details, clips, numbers, report)
            writer = None
        if writer is not None or (minutes and source.classes):
            _read_folder(writer, tokenizer, source, details, clips, budget, numbers, runs, report)
        if minutes and not source.classes:
            console.note(f"no classes: {source.no_probe}")
        described = describe_model(model, lm or tokenizer, part_of(model, "lm" if lm is not None else "tokenizer"))
        protocol = {**described, **source.describe(), "clips_a_kind": clips, "seeds": list(numbers)}
        protocol |= {f"budget_{name}": value for name, value in budget._asdict().items()} if minutes else {}
        text = report.text(protocol)
        console.emit({"protocol": protocol}, text)
        for path, reason in source.broken.items():
            console.fault(ValueError(reason if path in reason else f"{path}: {reason}"))
        if out is not None:
            rows = report.means()
            write_evaluation(out, text, {"rows": report.rows, "protocol": protocol}, partial(_draw, rows))
    return USER_CAN_MEND if source.broken else DONE


def _lm_of(model: str, device: str) -> PyramidLM | None:
    """None of a model that is a tokenizer alone. Raises FileNotFoundError where there is neither."""
    try:
        folder = part_of(model, "lm")
    except FileNotFoundError:
        return None
    alone = folder == part_of(model, "tokenizer") and json.loads((folder / "config.json").read_text(encoding="utf8"))
    return None if alone and alone.get("format") == "pyramid.tokenizer" else load_lm(model, device)


def _read_shapes(lm: PyramidLM, details: Sequence[int], clips: int, seeds: range, report: _Report) -> None:
    from pyramid.data.shapes import ShapesDataset, preset
    from tasks.understanding import Clips, score_captions, score_pixels, score_questions

    small = lm.tokenizer.config.size == (32, 32)
    one = "mini" if small else "single"
    kinds = [("one object", one, "test"), ("held-out combinations", one, "combinations")]
    kinds += [] if small else [("one to three objects", "full", "test")]
    for name, world, split in kinds:
        begin = time.monotonic()
        for number in seeds:
            dataset = ShapesDataset(preset(world), split)
            scored = Clips.of(lm, name, dataset, _FIRST + number * clips, clips)
            report.add("reconstruction", number, score_pixels(lm.tokenizer, scored, details))
            if scored.single and "caption" in lm.config.tasks:
                report.add("captions", number, score_captions(lm, scored, details))
            if "ask" in lm.config.tasks:
                trained = ShapesDataset(preset(world), "train")
                report.add("questions", number, score_questions(lm, scored, details, trained, seed=number))
        report.console.note(f"{name}: {time.monotonic() - begin:.0f} s")


def _read_folder(
    lm: PyramidLM | None,
    tokenizer: PyramidTokenizer,
    source: Source,
    details: Sequence[int],
    clips: int,
    budget: Budget,
    seeds: range,
    one_shot: Sequence[Run],
    report: _Report,
) -> None:
    """Classes and the one-shot benchmark, where there is time for classifiers; texts, where `lm` writes them."""
    import torch

    from tasks.class_reading import classify, read_clips

    generator = torch.Generator().manual_seed(seeds[0])

    def some(part: Any, count: int) -> list[int]:
        size = source.size(part)
        if size > 1 << 16:  # a procedural world
            return list(range(_FIRST, _FIRST + count))
        return torch.randperm(size, generator=generator)[:count].tolist()

    track = report.console.track
    learned, asked = some("train", budget.clips), some("held_out", clips * len(seeds))
    if not (learned and asked):
        counts = f"{len(learned)} and {len(asked)}"
        raise ValueError(f"expected clips to learn from and clips held out (split train, val or test), got {counts}")
    trained = read_clips(tokenizer, source, "train", learned, track, "training clips")
    tested = read_clips(tokenizer, source, "held_out", asked, track, "held-out clips")
    if budget.minutes and source.classes:
        rows, fitted = classify(
            tokenizer, source, trained, tested, details, budget=budget, seeds=list(seeds), track=track
        )
        report.add("classes", None, rows)
        if one_shot:
            from tasks.one_shot import score_one_shot

            report.add("one-shot", None, score_one_shot(tokenizer, one_shot, fitted, trained, details, seeds[0]))
    told = [place for place, caption in enumerate(tested.captions) if caption]
    if lm is not None and told and trained.captions:
        from tasks.caption_reading import score_texts
        from tasks.class_reading import nearest_captions, tokens_of

        level = lm.config.caption_detail
        tokens = tokens_of(tokenizer, tested.ids[told], tested.pixels.shape[2])
        near = nearest_captions(tokenizer, trained, tested, level)
        truth = [tested.captions[place] for place in told]
        found = score_texts(lm, tokens, truth, trained.captions, [near[place] for place in told], level, seeds[0])
        report.add("texts", None, found)


class _Report:
    """Rows in sections, said as they come."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows: list[Row] = []

    def add(self, section: str, seed: int | None, rows: Sequence[Row]) -> None:
        for row in rows:
            self.rows.append({"section": section} | ({} if seed is None else {"seed": seed}) | row)
            self.console.emit(self.rows[-1])

    def means(self) -> list[Row]:
        """Over the seeds; of the figure "all", or else the first that is a share, the range beside it."""
        groups: dict[tuple, list[Row]] = {}
        for row in self.rows:
            like = tuple(row.get(name) for name in ("section", "clips", "of", "detail", "views"))
            groups.setdefault(like, []).append(row)
        means = []
        for group in groups.values():
            mean: Row = {key: value for key, value in group[0].items() if key != "seed"}
            for key, value in mean.items():
                if isinstance(value, float):
                    mean[key] = sum(row[key] for row in group) / len(group)
            name = _main_figure(mean)
            if len(group) > 1 and name is not None:
                mean["range"] = [min(row[name] for row in group), max(row[name] for row in group)]
            means.append(mean)
        return means

    def text(self, protocol: dict[str, Any]) -> str:
        from tasks.evaluate import protocol_lines, table

        means, lines = self.means(), []
        for section in dict.fromkeys(row["section"] for row in means):
            part = [row for row in means if row["section"] == section]
            names = [name for name in dict.fromkeys(key for row in part for key in row) if name != "section"]
            lines += [section, *table(names, [[_cell(key, row.get(key)) for key in names] for row in part]), ""]
        return "\n".join([*lines, "protocol", *protocol_lines(protocol)])


_NO_SHARES = {
    *("section", "clips", "of", "detail", "tokens", "count", "a_second", "parameters", "steps", "psnr", "bleu", "chrf"),
    *("distinct", "range", "tokens_of_last_chunk", "views"),
}


def _main_figure(row: Row) -> str | None:
    return "all" if "all" in row else next((name for name in row if name not in _NO_SHARES), None)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " to ".join(f"{100 * part:.1f}" for part in value)
    if name in ("psnr", "bleu", "chrf"):
        return f"{value:.2f} dB" if name == "psnr" else f"{value:.1f}"
    if name in _NO_SHARES or isinstance(value, str):
        return f"{value:.0f}" if isinstance(value, float) else str(value)
    return f"{100 * value:.1f} %"


def _draw(rows: list[Row], path: Path) -> None:
    """Write a PNG: what is understood, in %, and reconstruction in dB against the tokens that are read; dashed: from
    pixels; dotted: without a look at the clip."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    lines: list[tuple[str, list[Row], str]] = []
    for section, name in dict.fromkeys(
        (row["section"], row.get("clips")) for row in rows if row["section"] in ("captions", "questions")
    ):
        part = [row for row in rows if (row["section"], row.get("clips")) == (section, name)]
        lines.append((f"{section}, {name}", part, "all"))
    classes = [row for row in rows if row["section"] == "classes" and row["of"] != "nearest code"]
    figures = [key for key in classes[0] if key not in _NO_SHARES] if classes else []
    for target in figures if len(figures) <= 3 else ["all"]:
        lines.append((f"class: {target}", classes, target))
    for number, (label, part, target) in enumerate(lines):
        read = [row for row in part if row.get("detail") and target in row]
        xs, ys = [row["tokens"] for row in read], [100 * row[target] for row in read]
        (drawn,) = axis.plot(xs, ys, "os^vDP"[number % 6] + "-", label=label)
        colour = drawn.get_color()
        if target == "all" and all("range" in row for row in read):
            low, high = ([100 * row["range"][end] for row in read] for end in (0, 1))
            axis.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)
        for row in part:
            style = {"pixels": "--", "most frequent": ":"}.get(row["of"])
            if style and row.get(target) is not None:
                axis.axhline(100 * row[target], color=colour, linestyle=style, linewidth=1)
    axis.set_xscale("log")
    ticks = sorted({row["tokens"] for row in rows if row.get("detail") and "tokens" in row})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(0, 103)
    axis.set_xlabel("tokens of a clip that are read")
    axis.set_ylabel("% right; dashed: from pixels; dotted: the most frequent answer")
    axis.grid(alpha=0.3)
    shown = [row for row in rows if "psnr" in row]
    shown = [row for row in shown if (row["section"], row.get("clips")) == (shown[0]["section"], shown[0].get("clips"))]
    if shown:
        other = axis.twinx()
        other.plot([row["tokens"] for row in shown], [row["psnr"] for row in shown], "k.-", alpha=0.5, label="PSNR")
        other.set_ylabel("reconstruction, dB")
        other.legend(frameon=False, fontsize=8, loc="lower right")
    axis.legend(frameon=False, fontsize=8, loc="center right" if shown else "best")
    figure.savefig(path, dpi=110)
