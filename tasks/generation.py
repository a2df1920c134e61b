"""How good what a language model writes is: `score_scenes`, `score_tasks`, `score_writing`, `score_forcing`,
`score_drift`.

Every figure stands beside its ceiling or floor: what the judge says of real clips and of their reconstructions, the
distance between two sets of real clips, the copied frame. Clips are rounded to 8 bits before they are judged.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lm.conditions import TASKS, Condition, make_condition
from lm.decoding import Decoding, num_passes
from lm.layout import blocks_of
from pyramid.data.shapes import SceneAttributes, ShapesDataset
from pyramid.data.transforms import from_uint8, to_uint8
from pyramid.levels import chunk_lengths
from pyramid.metrics import psnr
from tasks.frechet import frechet_distance

if TYPE_CHECKING:
    from lm.model import PyramidLM

Track = Callable[[Iterable[Any], str, int], Iterator[Any]]
Features = Callable[[Tensor], Tensor]
Row = dict[str, Any]
FIRST = 1 << 19  # index of the first clip that is scored: training never comes so far


def rounded(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [-1, 1] as a file of 8 bits would hold it."""
    return torch.stack([from_uint8(to_uint8(clip)) for clip in video])


def in_batches(count: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Scenes:
    """Prompts that a world can judge. `name`: what they are; `items`: as `ShapesDataset.describe` gives them;
    `dataset`: where their clips come from."""

    name: str
    dataset: ShapesDataset
    items: list[dict]

    @staticmethod
    def of(name: str, dataset: ShapesDataset, count: int, num_objects: int | None = None) -> Scenes:
        """The first `count` scenes that are scored, those with `num_objects` objects where it is given."""
        found: list[dict] = []
        start = FIRST
        while len(found) < count:
            items = dataset.describe(range(start, start + 256))
            found += [item for item in items if num_objects in (None, len(item["attributes"].objects))]
            start += 256
        return Scenes(name, dataset, found[:count])

    def video(self, start: int, stop: int) -> Tensor:
        items = self.dataset.__getitems__([item["index"] for item in self.items[start:stop]])
        return torch.stack([item["video"] for item in items])


Judge = Callable[[Sequence[SceneAttributes], Tensor], list[dict[str, bool]]]


def score_scenes(
    lm: PyramidLM,
    scenes: Scenes,
    judge: Judge,
    details: Sequence[int],
    *,
    seed: int = 0,
    decoding: dict[str, Any] | None = None,
    batch_size: int = 16,
    track: Track = lambda items, what, total: iter(items),
) -> list[Row]:
    """Clips from the captions of scenes at every detail, judged: a row for each detail, one for real clips and one for
    their reconstructions (`of`: "generated", "real", "reconstructed"), with the share that is right of everything that
    `judge` says, `seconds` a clip and `passes`."""
    rows = []
    truth = [item["attributes"] for item in scenes.items]
    parts = in_batches(len(truth), batch_size)
    answers: dict[str, list[dict[str, bool]]] = {"real": [], "reconstructed": []}
    for start, stop in track(parts, f"{scenes.name}: real clips", len(parts)):
        video = rounded(scenes.video(start, stop))
        answers["real"] += judge(truth[start:stop], video)
        again = rounded(lm.tokenizer.decode(lm.tokenizer.encode(video)))
        answers["reconstructed"] += judge(truth[start:stop], again)
    for of, found in answers.items():
        rows.append({"prompts": scenes.name, "of": of, "detail": None, **_shares(found), "clips": len(found)})
    settings = _settings(lm, "generate", decoding)
    pyramids = lm.tokenizer.pyramids(lm.tokenizer.config.num_frames)
    for detail in details:
        found, seconds = [], 0.0
        for start, stop in track(parts, f"{scenes.name}: detail {detail}", len(parts)):
            prompts = [item["caption"] for item in scenes.items[start:stop]]
            begin = time.perf_counter()
            tokens = lm.generate(prompts, detail, seed=seed + start, **(decoding or {}))
            video = lm.tokenizer.decode(tokens)
            seconds += time.perf_counter() - begin
            found += judge(truth[start:stop], rounded(video))
        row = {"prompts": scenes.name, "of": "generated", "detail": detail, **_shares(found), "clips": len(found)}
        blocks = blocks_of(pyramids, detail, lm.memory)
        row |= {
            "tokens": sum(block.count for block in blocks),
            "passes": num_passes(settings, blocks),
            "seconds": seconds / len(found),
        }
        rows.append(row)
    return rows


def _settings(lm: PyramidLM, task: str, decoding: dict[str, Any] | None) -> Decoding:
    import dataclasses

    return dataclasses.replace(lm.decoding(task), **(decoding or {}))


def _shares(found: Sequence[dict[str, bool]]) -> dict[str, float | None]:
    names = dict.fromkeys(name for answer in found for name in answer)
    return {name: share([answer[name] for answer in found if name in answer]) for name in names}


def scene_judge(network: Any) -> Judge:
    """A `SceneJudge` as what `score_scenes` asks."""
    from tasks.scene_judge import agreement_with

    def judge(truth: Sequence[SceneAttributes], video: Tensor) -> list[dict[str, bool]]:
        return [agreement_with(scene, found) for scene, found in zip(truth, network.scenes(video), strict=True)]

    return judge


def attribute_judge(network: Any) -> Judge:
    """A `Judge` of single objects as what `score_scenes` asks."""
    from tasks.judge import wanted

    def judge(truth: Sequence[SceneAttributes], video: Tensor) -> list[dict[str, bool]]:
        answers = []
        for scene, found in zip(truth, network.attributes(video), strict=True):
            right = {name: found[name] == value for name, value in wanted(scene).items()}
            answers.append(right | {"all": all(right[name] for name in ("shape", "colour", "motion"))})
        return answers

    return judge


# ---------------------------------------------------------------------------------------------- handwriting


def score_writing(
    lm: PyramidLM,
    batches: Iterable[tuple[Tensor, list[str], list[str]]],
    judge: Any,
    *,
    seed: int = 0,
    decoding: dict[str, Any] | None = None,
) -> list[Row]:
    """Whether a `WritingJudge` reads the character that was meant, and at least its alphabet: of real clips and their
    reconstructions, which are ceilings; of clips written by class; and of the first half of a clip, gone on with
    ("finished", from its caption or without a word of text), or left as it is ("left unfinished"). Batches: videos,
    captions, labels."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for number, (video, captions, labels) in enumerate(batches):
        video = rounded(video)
        settings = {"seed": seed + 1000 * number, **(decoding or {})}
        results = {"real": video, "reconstructed": lm.tokenizer.decode(lm.tokenizer.encode(video))}
        condition, known = given(lm, "continue", video, torch.Generator())
        for name, prompts in (("finished, told what", captions), ("finished, no text", [""] * len(video))):
            finished = lm.tokenizer.decode(lm.generate(prompts, condition=condition, **settings))
            results[name] = torch.where(known, video, finished)
        results["left unfinished"] = torch.where(known, video, TASKS["continue"].fill(video, known))  # type: ignore[misc]
        if "class" in lm.config.tasks:
            results["written by class"] = lm.tokenizer.decode(
                lm.generate(labels, condition=Condition("class"), **settings)
            )
        for name, result in results.items():
            found[name] += zip(labels, judge.characters(rounded(result)), strict=True)
    rows = []
    for name, pairs in found.items():
        right = share([wanted == seen for wanted, seen in pairs])
        alphabet = share([wanted.split("/")[0] == seen.split("/")[0] for wanted, seen in pairs])
        rows.append({"of": name, "right": right, "alphabet": alphabet, "clips": len(pairs)})
    return rows


# ---------------------------------------------------------------------------------------------- sets of clips


def score_sets(real: Tensor, other: Tensor, made: dict[str, Tensor]) -> list[Row]:
    """Fréchet distances to the features (N, F) of real clips: of other real ones, which is the floor, and of what was
    made, by name; and the mean distance of two clips of each set, which says how different they are."""
    rows = []
    for name, features in {"real": other, **made}.items():
        rows.append(
            {
                "of": name,
                "frechet": frechet_distance(real, features),
                "diversity": _spread(features),
                "clips": len(features),
            }
        )
    return rows


def _spread(features: Tensor) -> float:
    """Mean Euclidean distance between two rows."""
    return torch.pdist(features.double()).mean().item()


def score_diversity(
    lm: PyramidLM, prompts: Sequence[str], features: Features, *, samples: int = 4, **decoding: Any
) -> float:
    """Mean distance in the features between clips of one prompt, over the mean distance between clips of two prompts: 0
    where all clips of a prompt are the same, 1 where the prompt says nothing."""
    within, groups = [], []
    for index, prompt in enumerate(prompts):
        tokens = lm.generate([prompt] * samples, seed=1000 * index, **decoding)
        group = features(rounded(lm.tokenizer.decode(tokens)))
        within.append(_spread(group))
        groups.append(group)
    means = torch.cat([group[:1] for group in groups])
    return (sum(within) / len(within)) / _spread(means)


# ---------------------------------------------------------------------------------------------- tasks


def score_tasks(
    lm: PyramidLM,
    batches: Iterable[tuple[Tensor, list[str]]],
    tasks: Sequence[str],
    *,
    seed: int = 0,
    features: Features | None = None,
    real: Tensor | None = None,
    decoding: dict[str, Any] | None = None,
) -> list[Row]:
    """Clips (B, 3, T, H, W) with captions, given in part and written again by each task: a row a task.

    psnr_known, psnr_unknown: of the pixels that were given and of the others, in dB (of all where there is no mask);
    `copied` the same of the unknown ones by the usual guess - the last frame again, the blend of both ends, grey, the
    nearest pixel, the softened clip, the draft; motion, motion_copied: correlation of the changes from frame to frame
    with the true ones, over the frames that were not known whole. frechet: of features of the whole clips to those of
    `real`, beside that of the guess.
    """
    sums: dict[str, dict[str, list[float]]] = {task: defaultdict(list) for task in tasks}
    made: dict[str, dict[str, list[Tensor]]] = {task: defaultdict(list) for task in tasks}
    for number, (video, captions) in enumerate(batches):
        video = rounded(video)
        for task in tasks:
            condition, known = given(lm, task, video, torch.Generator().manual_seed(seed + number))
            tokens = lm.generate(captions, condition=condition, seed=seed + 1000 * number, **(decoding or {}))
            written = lm.tokenizer.decode(tokens)
            rule = TASKS[task]
            if rule.fill:
                guess = torch.where(known, video, rule.fill(video, known))
            elif rule.replace:
                guess = rule.replace(video, 4)
            else:
                assert condition.draft is not None  # of the one task that is left
                guess = lm.tokenizer.decode(condition.draft)
            if rule.fill:
                sums[task]["psnr_known"].append(_psnr(written, video, known))
                sums[task]["psnr_unknown"].append(_psnr(written, video, ~known))
                sums[task]["copied"].append(_psnr(guess, video, ~known))
                result = torch.where(known, video, written)
            else:
                sums[task]["psnr_unknown"].append(psnr(written, video).mean().item())
                sums[task]["copied"].append(psnr(guess, video).mean().item())
                result = written
            sums[task]["motion"].append(_motion_agreement(result, video, known))
            sums[task]["motion_copied"].append(_motion_agreement(guess, video, known))
            if features is not None:
                made[task]["written"].append(features(rounded(result)))
                made[task]["guess"].append(features(rounded(guess)))
    rows = []
    for task in tasks:
        row: Row = {"task": task}
        row |= {name: sum(values) / len(values) for name, values in sums[task].items()}
        if real is not None and features is not None:
            row["frechet"] = frechet_distance(real, torch.cat(made[task]["written"]))
            row["frechet_copied"] = frechet_distance(real, torch.cat(made[task]["guess"]))
        rows.append(row)
    return rows


def given(lm: PyramidLM, task: str, video: Tensor, generator: torch.Generator) -> tuple[Condition, Tensor]:
    """What a task is given of clips to be scored on, and the known pixels (B, 1, T, H, W): the first frame, the first
    half, both ends, or as in training."""
    frames, shape = video.shape[2], (len(video), 1, *video.shape[2:])
    known = torch.zeros(shape, dtype=torch.bool)
    if task in ("animate", "continue", "interpolate"):
        lengths = chunk_lengths(frames, lm.tokenizer.config.chunk_frames)
        first = 1 if task != "continue" else sum(lengths[: max(1, len(lengths) - 1)])
        known[:, :, :first] = True
        known[:, :, -1] |= task == "interpolate"
        return make_condition(lm.tokenizer, task, video, known), known
    if task == "refine":
        levels = max(1, lm.num_levels // 2)
        return make_condition(lm.tokenizer, task, video, levels=levels), known
    draw = TASKS[task].draw
    if draw is None:
        return make_condition(lm.tokenizer, task, video), known
    known = torch.stack([draw((frames, *video.shape[3:]), generator) for _ in video])[:, None]
    return make_condition(lm.tokenizer, task, video, known), known


def _psnr(a: Tensor, b: Tensor, where: Tensor) -> float:
    """Mean over the clips of PSNR in dB over the pixels `where` (B, 1, T, H, W)."""
    error = (a - b).square().mul(where).flatten(1).sum(dim=1) / (3 * where.flatten(1).sum(dim=1)).clamp(min=1)
    return (10 * torch.log10(4 / error.clamp(min=1e-10))).mean().item()


def _motion_agreement(a: Tensor, b: Tensor, known: Tensor) -> float:
    """Mean correlation of what changes from frame to frame, up to frames that are not known whole; 0 for a clip that
    stands still there."""
    written = ~known.flatten(3).all(dim=3)[:, :, 1:, None, None]
    one, other = (((video[:, :, 1:] - video[:, :, :-1]) * written).flatten(1) for video in (a, b))
    return torch.cosine_similarity(one, other, dim=1).mean().item()


# ---------------------------------------------------------------------------------------------- exposure


def score_forcing(
    lm: PyramidLM,
    batches: Iterable[tuple[Tensor, list[str], list[Any]]],
    *,
    seed: int = 0,
    judge: Callable[[list[Any], Tensor], list[dict[str, bool]]] | None = None,
) -> Row:
    """What mistakes cost, over clips with captions and what the judge asks of them.

    teacher_nats: a token of each level, of blocks that are hidden whole while all before them is true. Then clips that
    are drawn: block, every block after true ones; free, all of it from the text: psnr against the clip, and what is
    right by the judge ("all").
    """
    nats: dict[int, list[float]] = defaultdict(list)
    scores: dict[str, list[float]] = defaultdict(list)
    right: dict[str, list[dict[str, bool]]] = defaultdict(list)
    for number, (video, captions, truth) in enumerate(batches):
        video = rounded(video)
        tokens = lm.tokenizer.encode(video)
        with torch.no_grad():
            losses = lm.generation_loss(tokens, [lm.text_ids(text) for text in captions], lm.num_levels, whole=1.0)
        for level, value in losses.items():
            nats[level].append(value.item())
        for name, forced in (("block", tokens), ("free", None)):
            drawn = lm.generate(captions, seed=seed + 1000 * number, forced=forced)
            result = rounded(lm.tokenizer.decode(drawn))
            scores[name].append(psnr(result, video).mean().item())
            if judge is not None:
                right[name] += judge(truth, result)
    row: Row = {"teacher_nats": [sum(values) / len(values) for _, values in sorted(nats.items())]}
    for name, values in scores.items():
        row[f"{name}_psnr"] = sum(values) / len(values)
        if right[name]:
            row[f"{name}_all"] = _shares(right[name])["all"]
    return row


def score_drift(
    clips: Iterable[Iterable[Tensor]], features: Features, fps: float, *, window: int, seconds: float = 5.0
) -> Row:
    """Long clips, each (1, 3, t, H, W) a piece, against their own beginnings: Fréchet distance between the features of
    all windows of their last `seconds` and of their first ones, beside the floor: of the first `seconds` and those
    after them. In constant memory but for what is compared. Raises ValueError for a clip of fewer than 3 x `seconds`.
    """
    count = round(seconds * fps)
    seen: dict[str, list[Tensor]] = defaultdict(list)
    frames = 0

    def windows(part: list[Tensor]) -> Tensor:
        starts = range(0, len(part) - window + 1, 4)
        return torch.cat([features(rounded(torch.stack(part[start : start + window], dim=2))) for start in starts])

    for clip in clips:
        first: list[Tensor] = []
        recent: deque[Tensor] = deque(maxlen=count)
        frames = 0
        for piece in clip:
            for frame in piece.unbind(dim=2):
                if frames < 2 * count:
                    first.append(frame)
                recent.append(frame)
                frames += 1
        if frames < 3 * count:
            raise ValueError(f"score_drift: expected at least {3 * count} frames, got {frames}")
        for name, part in (("begin", first[:count]), ("after", first[count:]), ("end", list(recent))):
            seen[name].append(windows(part))
    begin, after, end = (torch.cat(seen[name]) for name in ("begin", "after", "end"))
    distance, floor = frechet_distance(begin, end), frechet_distance(begin, after)
    return {"clips": len(seen["end"]), "frames": frames, "windows": len(end), "frechet": distance, "floor": floor}
