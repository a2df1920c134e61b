"""`pyramid evaluate episodes`: a small model learns to learn from examples of pyramid words, and is asked about classes
that it never saw (`lm/episodes.py`)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.console import DONE, Console
from tasks.files import claim_folder, write_evaluation
from tasks.models import load_tokenizer, part_of
from tasks.options import Device, Figures, Json, OneShot, Overwrite, Seed, Seeds, check_device

if TYPE_CHECKING:
    import torch

    from lm.episodes import EpisodeData, EpisodeModel, Episodes
    from pyramid.tokenizer import PyramidTokenizer
    from tasks.held_out import Source
    from tasks.one_shot import Run

Row = dict[str, Any]
_FIRST = 700_000  # of the clips of a split of shapes; no other evaluation takes them
_BATCH = 16  # episodes of a step
_RULES = ("shape", "colour", "motion")  # attributes of shapes that a label can stand for


def episodes(
    model: Annotated[str, typer.Argument(help="Whose words: a shipped model, a folder or a hub id.")] = "shapes",
    data: Annotated[
        str, typer.Argument(help="shapes, or a folder of clips with labels and a training split.")
    ] = "shapes",
    ways: Annotated[int, typer.Option("--ways", min=2, help="Classes of an episode.")] = 5,
    shots: Annotated[str, typer.Option("--shots", help="Clips of each class that are shown.")] = "0,1,3,5,10",
    clips: Annotated[
        int, typer.Option("--clips", min=64, help="Clips to learn from; a quarter as many are asked.")
    ] = 4000,
    minutes: Annotated[float, typer.Option("--minutes", min=0.01, help="Of training, a seed.")] = 3.0,
    seeds: Seeds = 2,
    one_shot: OneShot = None,
    out: Figures = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """In-context learning over pyramid words: accuracy on classes never seen, by clips shown, beside chance.

    Of `shapes` a class is a combination of shape, colour and motion; or a label stands for one of the three, and which
    one has to be found out. Tested on combinations that no training clip has. Of a folder a fifth of the labels is kept
    for the test.
    """
    with Console("evaluate episodes", as_json, writes=out is not None) as console:
        counts = _counts(shots)
        if out is not None:
            claim_folder(out, overwrite)
        tokenizer = load_tokenizer(model, check_device(device))
        from tasks.evaluate import describe_model, protocol_lines, table
        from tasks.one_shot import read_runs

        runs = [] if one_shot is None else read_runs(one_shot, tokenizer.config.size)
        if runs and ways < len(runs[0].known):
            raise ValueError(f"--one-shot: expected --ways of at least {len(runs[0].known)}, got {ways}")
        matched = _run_episodes(tokenizer, runs, console)
        learned, asked = _clips(tokenizer, model, data, clips, ways, seed, console)
        rows: list[Row] = []
        for number in range(seed, seed + seeds):
            trained = _train(learned, ways, max(counts), minutes, number, console)
            for row in _score(trained, asked, ways, counts, number):
                rows.append(row)
                console.emit(row)
            if matched:
                rows.append({"seed": number} | _one_shot(trained, matched))
                console.emit(rows[-1])
        protocol = describe_model(model, tokenizer, part_of(model, "tokenizer"))
        protocol |= {"data": data, "ways": ways, "training_clips": clips, "minutes": minutes, "episodes_a_figure": 500}
        means = _means(rows)
        names = list(dict.fromkeys(key for row in means for key in row))
        cells = [[_cell(key, row.get(key)) for key in names] for row in means]
        text = "\n".join([*table(names, cells), "", "protocol", *protocol_lines(protocol)])
        console.emit({"protocol": protocol}, text)
        if out is not None:
            write_evaluation(out, text, {"rows": rows, "protocol": protocol}, partial(_draw, means, ways))
    return DONE


def _counts(shots: str) -> list[int]:
    try:
        counts = [int(part) for part in shots.split(",")]
    except ValueError:
        raise ValueError(f"--shots: expected numbers such as 0,1,5, got {shots!r}") from None
    if counts[0] < 0 or counts[-1] < 1 or any(a >= b for a, b in pairwise(counts)):
        raise ValueError(f"--shots: expected numbers from 0 that rise to 1 or more, got {shots!r}")
    return counts


def _clips(
    tokenizer: PyramidTokenizer, model: str, data: str, count: int, ways: int, seed: int, console: Console
) -> tuple[EpisodeData, dict[str, EpisodeData]]:
    """Those to learn from, and those to ask about, by the kind of class."""
    from lm.episodes import EpisodeData
    from tasks.evaluate import open_source

    folder = part_of(model, "tokenizer")
    if data.split(":")[0] == "shapes" and not Path(data).exists():
        name = data if ":" in data else f"shapes:{'mini' if tokenizer.config.size == (32, 32) else 'single'}"
        source = open_source([name], tokenizer, folder, split="combinations")
        features, labels = _features(tokenizer, source, "train", range(_FIRST, _FIRST + count), console)
        whole, rules = _views(labels)
        learned = EpisodeData(features, [whole] * len(rules) + rules)
        features, labels = _features(tokenizer, source, "held_out", range(_FIRST, _FIRST + count // 4), console)
        whole, rules = _views(labels)
        return learned, {"combination": EpisodeData(features, [whole]), "one attribute": EpisodeData(features, rules)}
    import torch

    source = open_source([data], tokenizer, folder)
    if "label" not in source.classes:
        raise ValueError(f"{data}: expected a training split with labels, found {source.no_probe or 'no labels'}")
    generator = torch.Generator().manual_seed(seed)
    names = source.classes["label"]
    if len(names) < 2 * ways:
        raise ValueError(f"{data}: expected at least {2 * ways} labels, {ways} of them for the test, got {len(names)}")
    tested = max(ways, len(names) // 5)
    kept = {names[index] for index in torch.randperm(len(names), generator=generator)[:tested].tolist()}
    parts = []
    for part, most, inside in (("train", count, False), ("held_out", count // 4, True)):
        order = torch.randperm(source.size(part), generator=generator).tolist()  # type: ignore[arg-type]
        known = [(index, label) for index in order if (label := _label_of(source, part, index)) is not None]
        chosen = [index for index, label in known if (label in kept) == inside][:most]
        features, labels = _features(tokenizer, source, part, chosen, console)
        parts.append(EpisodeData(features, [[label.get("label") for label in labels]]))
    return parts[0], {"label": parts[1]}


def _views(labels: Sequence[dict[str, str]]) -> tuple[list[Hashable], list[list[Hashable]]]:
    """Of clips of shapes: all attributes together, and each alone."""
    rules: list[list[Hashable]] = [[label[name] for label in labels] for name in _RULES]
    return list(zip(*rules, strict=True)), rules


def _label_of(source: Any, part: str, index: int) -> str | None:
    dataset = source.held_out if part == "held_out" else source.train
    label = dataset.clips[index].label
    return None if label is None else str(label)


def _features(
    tokenizer: PyramidTokenizer, source: Source, part: Any, indices: Sequence[int], console: Console
) -> tuple[torch.Tensor, list[dict[str, str]]]:
    import torch

    from lm.episodes import word_features

    features, labels = [], []
    batches = source.clips(part, list(indices), 32)
    for batch in console.track(batches, f"{part} clips".replace("_", "-"), -(-len(indices) // 32)):
        video = torch.stack([clip.video for clip in batch])
        tokens = tokenizer.encode(video.to(tokenizer.device), tokenizer.word_levels[-1] + 1)
        features.append(word_features(tokenizer, tokens).cpu())
        labels += [dict(clip.labels) for clip in batch]
    return torch.cat(features), labels


def _train(data: EpisodeData, ways: int, shots: int, minutes: float, seed: int, console: Console) -> EpisodeModel:
    import torch

    from lm.episodes import EpisodeConfig, EpisodeModel, episode_loss
    from tasks.judging import Learner

    torch.manual_seed(seed)
    config = EpisodeConfig(data.features.shape[1], num_labels=max(10, ways))
    model = EpisodeModel(config, data.features)
    learner, generator = Learner(model, minutes), torch.Generator().manual_seed(seed)
    shown = max(1, min(shots, 40 // ways))  # every clip of an episode is asked for: those of few shots are among them
    for _ in console.track(learner.steps(), "steps"):
        drawn = data.draw(ways, shown, _BATCH, config.num_labels, generator)
        learner.learn(episode_loss(model, drawn.features, drawn.labels))
    return model.eval()


def _score(
    model: EpisodeModel, asked: dict[str, EpisodeData], ways: int, counts: Sequence[int], seed: int
) -> list[Row]:
    from lm.episodes import episode_accuracy, say_by_model, say_by_nearest_mean

    rows = []
    for kind, data in asked.items():
        for count in counts:
            drawn: dict[str, Any] = {"ways": ways, "shots": count, "num_labels": model.config.num_labels, "seed": seed}
            row: Row = {"seed": seed, "classes": kind, "shots": count}
            row["right"] = episode_accuracy(say_by_model(model), data, **drawn)
            row["nearest_mean"] = episode_accuracy(say_by_nearest_mean, data, **drawn)
            rows.append(row | {"chance": 1 / ways})
    return rows


def _run_episodes(tokenizer: PyramidTokenizer, runs: Sequence[Run], console: Console) -> list[Episodes]:
    """Omniglot's benchmark: the 20 pictures of a run are shown with labels, those to be matched are asked for."""
    import torch

    from lm.episodes import Episodes, word_features
    from tasks.one_shot import VIEWS, run_tokens

    found = []
    for run in console.track(runs, "one-shot runs"):
        names = torch.arange(len(run.known))
        asked, known = (
            torch.stack([word_features(tokenizer, view).cpu() for view in side]).mean(dim=0)
            for side in run_tokens(tokenizer, run, tokenizer.config.num_frames, tokenizer.word_levels[-1] + 1, VIEWS)
        )
        rows = torch.cat([known.expand(len(asked), *known.shape), asked[:, None]], dim=1)
        labels = torch.cat([names.expand(len(asked), -1), run.truth[:, None]], dim=1)
        found.append(Episodes(rows, labels, names.expand(len(asked), -1)))
    return found


def _one_shot(model: EpisodeModel, runs: Sequence[Episodes]) -> Row:
    from lm.episodes import say_by_model, say_by_nearest_mean

    row: Row = {"classes": "one-shot benchmark", "shots": 1}
    for name, say in (("right", say_by_model(model)), ("nearest_mean", say_by_nearest_mean)):
        shares = [float((say(run) == run.labels[:, -1]).float().mean()) for run in runs]
        row[name] = sum(shares) / len(shares)
    return row | {"chance": 1 / runs[0].names.shape[1]}


def _means(rows: Sequence[Row]) -> list[Row]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["classes"], row["shots"]), []).append(row)
    means = []
    for group in groups.values():
        mean: Row = {key: value for key, value in group[0].items() if key != "seed"}
        for key in ("right", "nearest_mean"):
            mean[key] = sum(row[key] for row in group) / len(group)
        mean["range"] = [min(row["right"] for row in group), max(row["right"] for row in group)]
        means.append(mean)
    return means


def _cell(name: str, value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(f"{100 * part:.1f}" for part in value)
    return f"{100 * value:.1f} %" if isinstance(value, float) else str(value)


def _draw(rows: list[Row], ways: int, path: Path) -> None:
    """Write a PNG: % right against shots, a line a kind of class; dashed: the nearest mean; dotted: chance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for kind in dict.fromkeys(row["classes"] for row in rows):
        line = [row for row in rows if row["classes"] == kind]
        shots = [row["shots"] for row in line]
        (drawn,) = axis.plot(shots, [100 * row["right"] for row in line], "o-", label=kind)
        colour = drawn.get_color()
        axis.plot(shots, [100 * row["nearest_mean"] for row in line], "--", color=colour, alpha=0.6)
        low, high = ([100 * row["range"][end] for row in line] for end in (0, 1))
        axis.fill_between(shots, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.axhline(100 / ways, color="k", linestyle=":", linewidth=1)
    axis.set_xticks(sorted({row["shots"] for row in rows}))
    axis.set_ylim(0, 103)
    axis.set_xlabel("clips shown of each class")
    axis.set_ylabel("% right")
    axis.set_title("dashed: the nearest mean; dotted: chance", fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)
