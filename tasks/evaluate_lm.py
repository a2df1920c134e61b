"""`pyramid evaluate lm`: how good what a language model writes is, beside ceilings, floors and the usual guesses.

`generation.py` measures; the networks that judge, and whose features distances are of, are shipped and named by hash.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.console import DONE, Console
from tasks.files import claim_folder, write_evaluation
from tasks.models import judge_folder, load_lm, part_of
from tasks.options import Device, Json, Overwrite, Seed, check_device, parse_details
from tasks.writing import Decoder, Guidance, Order, Passes, Temperature, TopP, decoding_options

if TYPE_CHECKING:
    from torch import Tensor

    from lm.model import PyramidLM
    from tasks.held_out import Source

SECTIONS = ("prompts", "writing", "sets", "tasks", "forcing", "drift")
# Of what kind of clips a section has figures, where it is not all.
_ABOUT = {"prompts": "shapes", "writing": "handwriting", "sets": "clips of 64x64x17", "drift": "clips of 64x64x17"}
_BATCH = 16
_LONG = 8  # clips of drift


def lm(
    model: Annotated[str, typer.Argument(help="A shipped model, a folder or a hub id.", show_default=False)],
    data: Annotated[str, typer.Argument(help="shapes, or a folder of clips with splits and captions.")],
    clips: Annotated[int, typer.Option("--clips", min=2, help="Held-out clips of each kind.")] = 200,
    detail: Annotated[str, typer.Option("--detail", "-d", help="Levels to write: 3, 1,3, 1-3 or all.")] = "all",
    only: Annotated[
        str | None,
        typer.Option("--only", help=f"Some of {', '.join(SECTIONS)}; by default all but drift.", show_default=False),
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", min=0.25, help="Of the long clips of drift.")] = 1.0,
    decoder: Decoder = None,
    passes: Passes = None,
    order: Order = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    guidance: Guidance = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the figures as .txt and .json.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """How good generated clips are.

    prompts (shapes): what a classifier of pixels says of clips generated from captions, per attribute and detail: one
    object, combinations of shape, colour and motion that no training clip has, two objects and their relation. writing
    (handwriting): the character of clips written by class, and of halves that are finished. sets: Fréchet distance to
    real clips and diversity. tasks: PSNR of known and unknown pixels, and motion, for every task. forcing: what is lost
    by following on one's own mistakes. drift: the end of long clips against their beginning. shapes:PRESET takes the
    clips of one preset alone.
    """
    with Console("evaluate lm", as_json, writes=out is not None) as console:
        chosen = tuple(only.split(",")) if only else tuple(name for name in SECTIONS if name != "drift")
        if unknown := [name for name in chosen if name not in SECTIONS]:
            raise ValueError(f"--only: expected some of {', '.join(SECTIONS)}, got {', '.join(unknown)}")
        decoding = decoding_options(decoder, passes, order, temperature, top_p, guidance)
        if out is not None:
            claim_folder(out, overwrite, inputs=[Path(data)] if Path(data).is_dir() else [])
        loaded = load_lm(model, check_device(device))
        details = parse_details(detail, loaded.num_levels)
        bench = _Bench(loaded, data, clips, seed, decoding, console)
        rows: list[dict[str, Any]] = []
        for name in chosen:
            begin = time.monotonic()
            for row in bench.section(name, details, minutes):
                rows.append({"section": name} | row)
                console.emit(rows[-1])
            if not any(row["section"] == name for row in rows):
                console.note(f"{name}: nothing to measure; it is about {_ABOUT[name]}, judged by a network for them")
            console.note(f"{name}: {time.monotonic() - begin:.0f} s")
        protocol = bench.protocol(model, chosen)
        text = report(rows, protocol)
        console.emit({"protocol": protocol}, text)
        if out is not None:
            write_evaluation(out, text, {"rows": rows, "protocol": protocol})
    return DONE


class _Bench:
    """A model, the clips it is scored on, and the network that judges them."""

    def __init__(
        self, lm: PyramidLM, data: str, clips: int, seed: int, decoding: dict[str, Any], console: Console
    ) -> None:
        from tasks.evaluate import open_source

        self.lm, self.data, self.clips, self.seed, self.decoding = lm, data, clips, seed, decoding
        self.track = console.track
        self.on_shapes = data.split(":")[0] == "shapes" and not Path(data).exists()
        c = lm.tokenizer.config
        self.small = (c.num_frames, *c.size) == (9, 32, 32)
        self.preset = data.partition(":")[2] if self.on_shapes else ""
        name = "shapes:mini" if self.small else "shapes:full"
        name = name if self.on_shapes and not self.preset else data
        self.source: Source = open_source([name], lm.tokenizer, Path())
        self.judge_name, self.network = self._network()

    def _network(self) -> tuple[str, Any]:
        """The network whose features distances are of, by name."""
        from tasks.clip_features import ClipFeatures
        from tasks.judge import Judge
        from tasks.scene_judge import SceneJudge
        from tasks.writing_judge import WritingJudge

        size = self.lm.tokenizer.config.size
        if self.on_shapes and self.small:
            return "mini", Judge.load(part_of(None, "judge"))
        if self.on_shapes:
            return "shapes_judge", SceneJudge.load(judge_folder("shapes_judge"))
        judge = WritingJudge.load(judge_folder("handwriting_judge"))
        if size == (64, 64) and set(self.source.classes.get("label", [])) & set(judge.labels):
            return "handwriting_judge", judge
        return "robot_features", ClipFeatures.load(judge_folder("robot_features"))

    def section(self, name: str, details: Sequence[int], minutes: float) -> Iterator[dict[str, Any]]:
        return getattr(self, f"_{name}")(details, minutes)

    def _batches(self, part: Any = "held_out") -> Iterator[tuple[Tensor, list[str], list[Any]]]:
        """Videos, captions and what a judge asks of them, of the clips that are scored."""
        import torch

        from tasks.held_out import ShapesSource

        if isinstance(self.source, ShapesSource):
            from tasks.generation import FIRST

            dataset = self.source.sets[part]
            for start in range(FIRST, FIRST + self.clips, _BATCH):
                items = dataset.__getitems__(list(range(start, min(start + _BATCH, FIRST + self.clips))))
                videos = torch.stack([item["video"] for item in items])
                yield videos, [item["caption"] for item in items], [item["attributes"] for item in items]
            return
        dataset = self.source._set(part)  # type: ignore[attr-defined]  # the other source is one of files
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(self.seed)).tolist()
        order = sorted(order[: self.clips])
        for first in range(0, len(order), _BATCH):
            items = [dataset[index] for index in order[first : first + _BATCH]]
            videos = torch.stack([item["video"] for item in items])
            yield videos, [item["caption"] for item in items], [str(item["label"] or "") for item in items]

    # One method a section.

    def _prompts(self, details: Sequence[int], minutes: float) -> Iterator[dict[str, Any]]:
        if not self.on_shapes:
            return
        from pyramid.data.shapes import ShapesDataset, preset
        from tasks.generation import Scenes, attribute_judge, scene_judge, score_scenes

        one = preset(self.preset or ("mini" if self.small else "single"))
        named = self.preset or "one object"
        kinds = [
            Scenes.of(named, ShapesDataset(one, "test"), self.clips),
            Scenes.of(f"{named}, held-out combinations", ShapesDataset(one, "combinations"), self.clips),
        ]
        if not (self.preset or self.small):
            kinds.append(Scenes.of("two objects", ShapesDataset(preset("full"), "test"), self.clips, 2))
        judge = attribute_judge(self.network) if self.small else scene_judge(self.network)
        for scenes in kinds:
            yield from score_scenes(
                self.lm, scenes, judge, details, seed=self.seed, decoding=self.decoding, track=self.track
            )

    def _writing(self, details: Sequence[int], minutes: float) -> Iterator[dict[str, Any]]:
        if self.judge_name != "handwriting_judge":
            return
        from tasks.generation import score_writing

        yield from score_writing(self.lm, self._batches(), self.network, seed=self.seed, decoding=self.decoding)

    def _features(self) -> Callable[[Tensor], Tensor] | None:
        return getattr(self.network, "features", None)

    def _sets(self, details: Sequence[int], minutes: float) -> Iterator[dict[str, Any]]:
        import torch

        from tasks.generation import rounded, score_diversity, score_sets

        features = self._features()
        if features is None:
            return
        real, other, again, made = [], [], [], []
        for number, (video, captions, _) in enumerate(self._batches()):
            half = len(video) // 2
            seen = features(rounded(video))
            real.append(seen[:half])
            other.append(seen[half:])
            tokens = self.lm.tokenizer.encode(video[half:])
            again.append(features(rounded(self.lm.tokenizer.decode(tokens))))
            tokens = self.lm.generate(captions[half:], seed=self.seed + 1000 * number, **self.decoding)
            made.append(features(rounded(self.lm.tokenizer.decode(tokens))))
        parts = {"reconstructed": torch.cat(again), "generated": torch.cat(made)}
        yield from score_sets(torch.cat(real), torch.cat(other), parts)
        prompts = [caption for _, captions, _ in islice(self._batches(), 1) for caption in captions][:8]
        yield {
            "of": "clips of one prompt, against of two",
            "diversity": score_diversity(self.lm, prompts, features, **self.decoding),
        }

    def _tasks(self, details: Sequence[int], minutes: float) -> Iterator[dict[str, Any]]:
        import torch

        from lm.conditions import TASKS
        from tasks.generation import rounded, score_tasks

        names = [name for name, task in TASKS.items() if task.fill or task.replace or name == "refine"]
        names = [name for name in names if name in self.lm.config.tasks]
        features = self._features()
        real = None
        if features is not None:
            real = torch.cat([features(rounded(video)) for video, _, _ in self._batches()])
        batches = [(video, captions) for video, captions, _ in self._batches()]
        for name in names:
            yield from score_tasks(
                self.lm, batches, [name], seed=self.seed, features=features, real=real, decoding=self.decoding
            )

    def _forcing(self, details: Sequence[int], minutes: float) -> Iterator[dict[str, Any]]:
        from tasks.generation import attribute_judge, scene_judge, score_forcing

        judge: Any = None
        if self.on_shapes:
            judge = attribute_judge(self.network) if self.small else scene_judge(self.network)
        yield score_forcing(self.lm, self._batches(), seed=self.seed, judge=judge)

    def _drift(self, details: Sequence[int], minutes: float) -> Iterator[dict[str, Any]]:
        from lm.editing import Writer, roll
        from tasks.generation import score_drift

        features = self._features()
        if features is None:
            return
        config = self.lm.tokenizer.config
        captions = [caption for _, batch, _ in self._batches() for caption in batch][:_LONG]

        def clip(index: int, prompt: str) -> Iterator[Tensor]:
            writer = Writer(self.lm, prompt, seed=self.seed + index, decoding=self.decoding)
            return (piece.video for piece in roll(writer, round(60 * minutes * config.fps)))

        clips = (clip(*each) for each in self.track(list(enumerate(captions)), "long clips", len(captions)))
        yield score_drift(clips, features, config.fps, window=config.num_frames)

    def protocol(self, model: str, chosen: Sequence[str]) -> dict[str, Any]:
        import torch

        from tasks.evaluate import describe_model
        from tasks.frechet import weights_hash

        folder = part_of(model, "lm")
        judged_by = part_of(None, "judge") if self.judge_name == "mini" else judge_folder(self.judge_name)
        described = describe_model(model, self.lm, folder)  # type: ignore[arg-type]  # it has weights as a tokenizer has
        return {
            **described,
            **self.source.describe(),
            "clips_a_kind": self.clips,
            "sections": list(chosen),
            "judge": self.judge_name,
            "judge_hash": weights_hash(judged_by),
            **dataclasses.asdict(self.lm.decoding("generate")) | self.decoding,
            "seed": self.seed,
            "rounding": "8 bits before anything is judged",
            "device": str(self.lm.device),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }


def report(rows: Sequence[dict[str, Any]], protocol: dict[str, Any]) -> str:
    """A table a section, and the protocol."""
    from tasks.evaluate import protocol_lines, table

    lines: list[str] = []
    for section in dict.fromkeys(row["section"] for row in rows):
        part = [
            {name: value for name, value in row.items() if name != "section"}
            for row in rows
            if row["section"] == section
        ]
        names = list(dict.fromkeys(name for row in part for name in row))
        lines += [section, *table(names, [[_cell(name, row.get(name)) for name in names] for row in part]), ""]
    return "\n".join([*lines, "protocol", *protocol_lines(protocol)])


_SHARES = {
    "shape",
    "colour",
    "size",
    "motion",
    "all",
    "alone",
    "relation",
    "right",
    "alphabet",
    "block_all",
    "free_all",
}


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(f"{part:.2f}" for part in value)
    if isinstance(value, float):
        return f"{100 * value:.1f} %" if name in _SHARES else f"{value:.3g}" if abs(value) < 10 else f"{value:.2f}"
    return str(value)
