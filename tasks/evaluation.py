"""`evaluate_tokenizer`: reconstruction and understanding of held-out clips at every detail, side by side.

Each seed draws the clips that are scored, and the training clips that its probes learn from; figures are means over
the seeds, with half their range beside. Clips that several seeds draw are read and decoded once. What is held in
memory does not grow with the number of clips scored: one batch of them, and `probe_clips` rows of features.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyramid import metrics
from pyramid.probe import MAX_FEATURES, MAX_ITERATIONS, MAX_SIDE, STRENGTHS, LinearProbe, code_features, fit_probe
from tasks.held_out import HeldOutClip, Source
from tasks.models import codebook_sizes

if TYPE_CHECKING:
    from pyramid.tokenizer import PyramidTokenizer

Track = Callable[[Iterable[Any], str, int], Iterator[Any]]
FIGURES = ("psnr", "ssim", "ms_ssim")
COVERAGES = ("coverage", "coverage_shuffled")
ALL = "all"  # all targets of a clip right together

_BATCH_PIXELS = 1 << 20  # of the clips that are encoded together


@dataclass(frozen=True, eq=False)
class Evaluation:
    """`rows`: one a detail, ready for JSON:

    detail, tokens (of a clip), bpp (raw bits of the tokens a pixel); psnr (dB), ssim, ms_ssim (None where frames are
    too small); understanding: accuracy of the probes by target, and of all targets together (None without probes);
    chance: the same of always giving the class most frequent in training; spread: half the range of each figure over
    the seeds; seeds: the figures of each; and of the level that the detail adds: codebook, codebook_size, level_tokens,
    codes_counted, usage, perplexity, over all clips scored. At details that add a level of words: coverage, the mean
    share of what a clip's caption says that some word up to the detail names, of any chunk; coverage_shuffled, the same
    by the caption of another clip (None at other details, and without captions).

    `protocol`: what was done to which clips. `broken`: clips that could not be read, with the reason."""

    rows: list[dict[str, Any]]
    protocol: dict[str, Any]
    broken: dict[str, str]


@dataclass
class _Seed:
    """What one seed scores, and its sums while the clips pass."""

    seed: int
    scored: set[int]
    probes: dict[str, list[LinearProbe]] = field(default_factory=dict)  # by target, one a detail
    usual: dict[str, int] = field(default_factory=dict)  # by target, the class most frequent in training
    sums: Counter[tuple[int, str]] = field(default_factory=Counter)  # by detail and figure
    clips: int = 0
    right: Counter[tuple[int, str]] = field(default_factory=Counter)  # by detail (0 for chance) and target
    labelled: Counter[str] = field(default_factory=Counter)
    named: defaultdict[tuple[int, str], float] = field(default_factory=lambda: defaultdict(float))  # over clips
    captioned: Counter[str] = field(default_factory=Counter)  # clips that count, by COVERAGES


def evaluate_tokenizer(
    tokenizer: PyramidTokenizer,
    source: Source,
    *,
    seeds: Sequence[int] = (0, 1),
    num_clips: int | None = None,
    probe_clips: int = 2000,
    rounding: bool = True,
    track: Track = lambda items, what, total: iter(items),
) -> Evaluation:
    """Score a tokenizer on the held-out clips of a source, at every detail.

    Args:
        seeds: each draws its clips and fits its probes.
        num_clips: held-out clips a seed; all by default, or where there are fewer.
        probe_clips: training clips a seed, at most nine tenths of those there are.
        rounding: clips and reconstructions are rounded to 8 bits, as a file would hold them, before anything else.
        track: shows progress; `Console.track` does.

    Raises ValueError where no clip can be read, no seed is given, or a reconstruction has NaN; VideoError as the
    source's policy says.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"evaluate_tokenizer: seeds must be one or more, all different, got {list(seeds)}")
    batch_size = _batch_size(source)
    runs = [_Seed(seed, set(_draw(source.size("held_out"), num_clips, seed))) for seed in seeds]
    probed = hashlib.sha256()
    num_probed = 0
    for run in runs if source.classes else ():
        chosen = _draw(source.size("train"), min(probe_clips, math.ceil(source.size("train") * 0.9)), run.seed)
        num_probed += _fit_probes(tokenizer, source, run, chosen, rounding, batch_size, probed, track)
    counts = [metrics.CodeUsage(size) for size in codebook_sizes(tokenizer)]
    clip_hash = hashlib.sha256()
    indices = sorted(set().union(*(run.scored for run in runs)))
    total, num_read, num_short, geometry = -(-len(indices) // batch_size), 0, 0, None
    for batch in track(source.clips("held_out", indices, batch_size), "scoring, batches", total):
        video = _video(batch, rounding, clip_hash)
        tokens = tokenizer.encode(video)
        for levels in tokens.ids:
            for usage, ids in zip(counts, levels, strict=True):
                usage.update(ids)
        _score_pixels(tokenizer, tokens, batch, video, runs, rounding)
        _score_probes(code_features(tokenizer, tokens), batch, source.classes, runs)
        _score_words(tokenizer.words(tokens), tokenizer.word_levels, batch, runs)
        num_read += len(batch)
        num_short += sum(clip.num_valid < video.shape[2] for clip in batch)
        geometry = tokens
    if geometry is None:
        reasons = f"; the first: {next(iter(source.broken.values()))}" if source.broken else ""
        raise ValueError(f"evaluate: expected at least one clip that can be read, got none of {len(indices)}{reasons}")
    rows = [_row(tokenizer, geometry, k, runs, counts) for k in range(1, tokenizer.num_levels + 1)]
    protocol = {
        **source.describe(),
        "clips": num_read,
        "clips_a_seed": [run.clips for run in runs],
        "clips_hash": clip_hash.hexdigest()[:16],
        "short_clips": num_short,
        "broken_clips": len(source.broken),
        "rounding": "8 bits, clips and reconstructions" if rounding else "none",
        **_metrics_protocol(geometry.height, geometry.width),
        "understanding": _probe_protocol(source, runs, num_probed, probed) if source.classes else source.no_probe,
        "seeds": [run.seed for run in runs],
        "device": str(tokenizer.device),
        "dtype": str(tokenizer.dtype).removeprefix("torch."),
        "machine": f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads",
    }
    return Evaluation(rows, protocol, dict(source.broken))


def _draw(population: int, count: int | None, seed: int) -> list[int]:
    """`count` different indices below `population`, in order; all of them for None or where there are fewer."""
    if count is None or count >= population:
        return list(range(population))
    return sorted(np.random.default_rng(seed).choice(population, count, replace=False).tolist())


def _batch_size(source: Source) -> int:
    shape = source.describe()
    return max(1, min(32, _BATCH_PIXELS // (shape["frames"] * math.prod(shape["size"]))))


def _video(batch: list[HeldOutClip], rounding: bool, digest: Any) -> Tensor:
    """(B, 3, T, H, W); the clips go into the hash as 8 bits."""
    video = torch.stack([clip.video for clip in batch])
    rounded = _rounded(video)
    digest.update(((rounded + 1) * 127.5).round().to(torch.uint8).numpy(force=True).tobytes())
    return rounded if rounding else video


def _rounded(video: Tensor) -> Tensor:
    """To the 256 levels of 8 bits, still in [-1, 1]."""
    return ((video.float() + 1) * 127.5).round() / 127.5 - 1


def _fit_probes(
    tokenizer: PyramidTokenizer,
    source: Source,
    run: _Seed,
    chosen: list[int],
    rounding: bool,
    batch_size: int,
    digest: Any,
    track: Track,
) -> int:
    """Fit the probes of one seed: for each target one a detail. Returns the number of clips read."""
    parts: list[list[Tensor]] = []
    labels: list[dict[str, str]] = []
    batches = source.clips("train", chosen, batch_size)
    for batch in track(batches, f"probes of seed {run.seed}, batches", -(-len(chosen) // batch_size)):
        tokens = tokenizer.encode(_video(batch, rounding, digest))
        parts.append(code_features(tokenizer, tokens))
        labels += [clip.labels for clip in batch]
    if not parts:
        raise ValueError(f"evaluate: expected training clips that can be read, got none of {len(chosen)}")
    levels = [torch.cat(level) for level in zip(*parts, strict=True)]
    jobs = [(target, k) for target in source.classes for k in range(1, len(levels) + 1)]
    for target, k in track(jobs, f"probes of seed {run.seed}", len(jobs)):
        rows = [row for row, clip in enumerate(labels) if target in clip]
        numbers = {name: number for number, name in enumerate(source.classes[target])}
        classes = torch.tensor([numbers[labels[row][target]] for row in rows], device=levels[0].device)
        if len(rows) < 2:
            raise ValueError(f"evaluate: expected two training clips or more with {target}, got {len(rows)}")
        features = torch.cat(levels[:k], dim=1)[rows]
        probe = fit_probe(features, classes, len(numbers), generator=torch.Generator().manual_seed(run.seed))
        run.probes.setdefault(target, []).append(probe)
        run.usual[target] = int(classes.bincount(minlength=len(numbers)).argmax())
    return len(labels)


def _score_pixels(
    tokenizer: PyramidTokenizer, tokens: Any, batch: list[HeldOutClip], video: Tensor, runs: list[_Seed], rounding: bool
) -> None:
    video = video.to(tokenizer.device)
    figures = [metrics.psnr, metrics.ssim, metrics.ms_ssim][: _num_figures(*video.shape[-2:])]
    for run in runs:
        run.clips += sum(clip.index in run.scored for clip in batch)
    for k in range(1, tokenizer.num_levels + 1):
        decoded = tokenizer.decode(tokens, k).float()
        if decoded.isnan().any():
            raise ValueError(f"evaluate: detail {k}: expected a reconstruction in [-1, 1], got NaN")
        decoded = _rounded(decoded) if rounding else decoded
        for num_valid in sorted({clip.num_valid for clip in batch}):  # only a clip's own frames count
            rows = [row for row, clip in enumerate(batch) if clip.num_valid == num_valid]
            pair = decoded[rows, :, :num_valid], video[rows, :, :num_valid]
            for name, figure in zip(FIGURES, figures, strict=False):
                for row, value in zip(rows, figure(*pair).tolist(), strict=True):
                    for run in runs:
                        if batch[row].index in run.scored:
                            run.sums[k, name] += value


def _num_figures(height: int, width: int) -> int:
    """Of FIGURES, how many frames of this size can have."""
    return 1 + (min(height, width) >= metrics.WINDOW) + (metrics.ms_ssim_scales(height, width) >= 2)


def _score_probes(
    levels: list[Tensor], batch: list[HeldOutClip], classes: dict[str, list[str]], runs: list[_Seed]
) -> None:
    for run in runs if classes else ():
        rows = [row for row, clip in enumerate(batch) if clip.index in run.scored]
        complete = [row for row in rows if classes.keys() <= batch[row].labels.keys()]
        run.labelled[ALL] += len(complete)
        for target in classes:
            run.labelled[target] += sum(target in batch[row].labels for row in rows)
        for k in range(len(levels) + 1):
            features = torch.cat(levels[:k], dim=1) if k else None
            good = {}
            for target, names in classes.items():
                if features is None:
                    given = [run.usual[target]] * len(batch)
                else:
                    given = run.probes[target][k - 1].predict(features).tolist()
                good[target] = {row for row in rows if batch[row].labels.get(target) == names[given[row]]}
                run.right[k, target] += len(good[target])
            run.right[k, ALL] += len(set(complete).intersection(*good.values()))


def _score_words(
    words: list[list[list[list[str]]]], word_levels: list[int], batch: list[HeldOutClip], runs: list[_Seed]
) -> None:
    """`words` as `PyramidTokenizer.words` gives them; the other clip of a clip is the next of the batch."""
    for run in runs:
        rows = [row for row, clip in enumerate(batch) if clip.index in run.scored and clip.says]
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
            compared = {"coverage": row} | ({"coverage_shuffled": other} if other != row else {})
            run.captioned.update(compared.keys())
            for count, index in enumerate(word_levels, start=1):
                said = {word for chunk in words[row] for level in chunk[:count] for word in level}
                for name, of in compared.items():
                    says = batch[of].says
                    run.named[index + 1, name] += sum(not said.isdisjoint(group) for group in says) / len(says)


def _accuracies(run: _Seed, k: int) -> dict[str, float]:
    names = [*run.probes, *([ALL] if len(run.probes) > 1 else [])]
    return {name: run.right[k, name] / run.labelled[name] for name in names if run.labelled[name]}


def _row(
    tokenizer: PyramidTokenizer, tokens: Any, k: int, runs: list[_Seed], counts: list[metrics.CodeUsage]
) -> dict[str, Any]:
    seeds: list[dict[str, Any]] = []
    num_figures = _num_figures(tokens.height, tokens.width)
    for run in (run for run in runs if run.clips):
        means = {name: run.sums[k, name] / run.clips for name in FIGURES[:num_figures]}
        figures: dict[str, Any] = {name: means.get(name) for name in FIGURES}
        figures["understanding"] = _accuracies(run, k) or None
        for name in COVERAGES:
            figures[name] = run.named[k, name] / run.captioned[name] if (k, name) in run.named else None
        seeds.append({"seed": run.seed, "clips": run.clips, **figures})
        if run.probes:
            seeds[-1]["l2"] = {target: probes[k - 1].strength for target, probes in run.probes.items()}
    mean, spread = _over_seeds(seeds)
    chance, _ = _over_seeds([{"understanding": _accuracies(run, 0) or None} for run in runs if run.clips])
    pixels = tokens.num_frames * tokens.height * tokens.width
    usage = counts[k - 1]
    return {
        "detail": k,
        "tokens": tokens.num_tokens(k),
        "bpp": metrics.raw_bits(tokens.pyramids, codebook_sizes(tokenizer), k) / pixels,
        **mean,
        "chance": chance["understanding"],
        "codebook": tokenizer.config.levels[k - 1].codebook,
        "codebook_size": usage.codebook_size,
        "level_tokens": sum(pyramid.counts[k - 1] for pyramid in tokens.pyramids),
        "codes_counted": sum(usage.counts.values()),
        **usage.compute(),
        "spread": spread,
        "seeds": seeds,
    }


def _over_seeds(seeds: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The mean of every figure, and half its range; those that a seed does not have are None."""
    mean: dict[str, Any] = {}
    spread: dict[str, Any] = {}
    for name in (name for name in (*FIGURES, *COVERAGES, "understanding") if name in seeds[0]):
        values = [seed[name] for seed in seeds]
        if any(value is None for value in values):
            mean[name] = spread[name] = None
        elif isinstance(values[0], dict):
            shared = [target for target in values[0] if all(target in value for value in values)]
            parts = {target: [value[target] for value in values] for target in shared}
            mean[name] = {target: sum(part) / len(part) for target, part in parts.items()}
            spread[name] = {target: (max(part) - min(part)) / 2 for target, part in parts.items()}
        else:
            mean[name], spread[name] = sum(values) / len(values), (max(values) - min(values)) / 2
    return mean, spread


def _metrics_protocol(height: int, width: int) -> dict[str, Any]:
    scales = metrics.ms_ssim_scales(height, width)
    size, all_scales = f"frames of {height}x{width}", len(metrics.MS_SSIM_WEIGHTS)
    windows = f"{metrics.WINDOW}x{metrics.WINDOW} Gaussian windows, reflected at the borders, mean over frames"
    small = f"null: {size} hold no whole window"
    if scales == all_scales:
        multi = f"all {all_scales} scales"
    elif scales >= 2:
        multi = f"{scales} of {all_scales} scales, as {size} hold no more; their weights sum to 1"
    else:
        multi = f"null: {size} hold fewer than 2 scales"
    return {
        "psnr": f"of all pixels of a clip, mean over clips; at most {metrics.PSNR_CAP:g} dB, which equal clips get",
        "ssim": windows if _num_figures(height, width) > 1 else small,
        "ms_ssim": multi,
        "ms_ssim_scales": scales if scales >= 2 else None,
        "bpp": "raw: log2 of the level's codebook size a token, no entropy coding, over height x width x frames",
    }


def _probe_protocol(source: Source, runs: list[_Seed], num_probed: int, digest: Any) -> dict[str, Any]:
    dims = [probe.weight.shape[0] for probe in next(iter(runs[0].probes.values()))]
    return {
        "probe": "multinomial logistic regression with L2, on standardised code vectors of the levels up to the detail",
        "features": f"in place, grids averaged to {MAX_SIDE}x{MAX_SIDE} at most, hashed to {MAX_FEATURES} a level",
        "features_by_detail": dims,
        "l2": f"{_list(STRENGTHS)}, until a held-out fifth gets worse; L-BFGS, at most {MAX_ITERATIONS} steps",
        "training_clips": num_probed,
        "training_clips_hash": digest.hexdigest()[:16],
        "classes": {target: len(names) for target, names in source.classes.items()},
        "labelled_a_seed": {target: [run.labelled[target] for run in runs] for target in source.classes},
        "chance": "always the class most frequent in training",
        "labels": "a class of no training clip counts as wrong",
    }


def _list(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
