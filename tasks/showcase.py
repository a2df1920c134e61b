"""The parts of the quickstart: each runs one thing on held-out clips and returns figures and a section to look at.

All clips are drawn by `shapes`, so every figure is exact: a caption is right if shape, colour, size and motion all
are; a generated clip is right if the judge, a separate classifier of pixels, sees the shape, colour and motion asked.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyramid.config import load
from pyramid.data import grammar
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.data.transforms import to_uint8
from pyramid.data.video import contact_sheet, write_video
from pyramid.metrics import psnr
from pyramid.train import TrainTokenizerConfig, train_tokenizer
from tasks.clips import read_spread
from tasks.console import Console
from tasks.judge import Judge, wanted
from tasks.report import Block, Clip, Clips, Curves, Picture, Section, Table, Words
from tasks.train import quiet_lightning
from tasks.training_progress import TrainingProgress

if TYPE_CHECKING:
    from lm.model import PyramidLM
    from pyramid.tokenizer import PyramidTokenizer

ASKED = ("shape", "colour", "size", "motion")  # of a caption
JUDGED = ("shape", "colour", "motion")  # of a generated clip
_BATCH = 32

# The tokenizer trained from scratch in front of the reader: small, so that two minutes show a curve.
_SMALL = {"model": {"channels": [48, 96], "depths": [1, 1], "dim": 128, "depth": 2}, "run": {"batch_size": 16}}


@dataclass(frozen=True)
class Part:
    """What one part found: `figures` for summary.json, `section` for the report."""

    figures: dict[str, Any]
    section: Section = field(default_factory=lambda: Section(""))


def held_out(split: str, count: int, tokenizer: PyramidTokenizer) -> list[dict]:
    """The first clips of a split of the world that the tokenizer was made for, never seen in training."""
    c = tokenizer.config
    world = preset("mini", height=c.height, width=c.width, num_frames=c.num_frames, fps=c.fps)
    return ShapesDataset(world, split, count).__getitems__(range(count))


def videos_of(items: Sequence[dict]) -> Tensor:
    return torch.stack([item["video"] for item in items])


def train_small(out: Path, minutes: float, seed: int, console: Console) -> tuple[Part, PyramidTokenizer]:
    """Train a small tokenizer from scratch; the curve of its loss, and of its PSNR by detail."""
    from pyramid.tokenizer import PyramidTokenizer

    overrides = [f"run.max_minutes={minutes}", f"run.seed={seed}", "run.val_every=50", "run.val_batches=2"]
    config = load(TrainTokenizerConfig, _SMALL, overrides=overrides)
    progress = TrainingProgress(console, "train")
    quiet_lightning()
    train_tokenizer(config, out, callbacks=[progress])
    history = progress.history
    tokenizer = PyramidTokenizer.from_pretrained(out)
    loss = {"loss": _line(history, "train/loss")}
    by_detail = {f"detail {k}": _line(history, f"val/psnr_detail{k}") for k in range(1, tokenizer.num_levels + 1)}
    section = Section(
        "A tokenizer, trained just now",
        f"{sum(p.numel() for p in tokenizer.parameters()) / 1e6:.1f} M parameters, {history[-1]['step']} steps in "
        f"{history[-1]['seconds']:.0f} s on this machine. Every prefix of the levels decodes; each level adds detail.",
        [Curves(loss, "seconds", "loss", log_y=True), Curves(by_detail, "seconds", "PSNR, dB", markers=True)],
    )
    return Part({"steps": history[-1]["step"], "final_loss": history[-1].get("train/loss")}, section), tokenizer


def _line(history: list[dict], name: str) -> tuple[list[float], list[float]]:
    points = [(record["seconds"], record[name]) for record in history if name in record]
    return [x for x, _ in points], [y for _, y in points]


def show_reconstruction(tokenizer: PyramidTokenizer, title: str, count: int = 64, shown: int = 3) -> Part:
    """PSNR at every detail over held-out clips, and a sheet of some."""
    videos = videos_of(held_out("test", count, tokenizer))
    details = range(1, tokenizer.num_levels + 1)
    sums, rows, labels = [0.0] * len(details), [], []
    for start in range(0, count, _BATCH):
        batch = videos[start : start + _BATCH]
        tokens = tokenizer.encode(batch)
        decoded = [tokenizer.decode(tokens, detail=k).cpu() for k in details]
        sums = [total + psnr(video, batch).sum().item() for total, video in zip(sums, decoded, strict=True)]
        if start == 0:
            counts = [tokens.num_tokens(k) for k in details]
            for index in range(shown):
                rows += [batch[index], *(video[index] for video in decoded)]
                labels += ["original", *(f"detail {k}, {n} tokens" for k, n in zip(details, counts, strict=True))]
    means = [round(total / count, 2) for total in sums]
    table = list(zip(details, counts, means, strict=True))
    blocks: list[Block] = [
        Table(["detail", "tokens", "PSNR, dB"], table),
        Picture(contact_sheet(rows, labels, max_frames=9)),
    ]
    return Part(
        {"psnr_by_detail": means, "tokens_by_detail": counts}, Section(title, f"{count} held-out clips.", blocks)
    )


def show_captions(lm: PyramidLM, folder: Path, count: int = 200, shown: int = 16) -> Part:
    """Captions of held-out clips that were written as mp4 and read back, as a user's clips are; some are shown."""
    tokenizer = lm.tokenizer
    items, combinations = (held_out(split, count, tokenizer) for split in ("test", "combinations"))
    read = through_files(items, folder / "test", tokenizer)
    said = caption_all(lm, read)
    said_combinations = caption_all(lm, through_files(combinations, folder / "combinations", tokenizer))
    said_drawn = caption_all(lm, videos_of(items))

    clips, rows, words = [], [], []
    for index, (item, video, text) in enumerate(zip(items[:shown], read, said, strict=False)):
        frames = to_uint8(video).numpy()
        right = matches(text, item, ASKED)
        clips.append(Clip(frames, text, tokenizer.config.fps, good=right))
        rows.append((f"test/{index:03d}.mp4", text, item["caption"], right))
        tokens = tokenizer.encode(video[None])
        top = tokenizer.words(tokens.truncate(lm.config.caption_detail))[0][-1]
        words.append((Clip(frames, "", tokenizer.config.fps), item["caption"], top))
    tokens = tokenizer.encode(videos_of(items[:1]))
    figures = {
        "exact_match": _share(said, items, ASKED),
        "n": count,
        "tokens_read": tokens.num_tokens(lm.config.caption_detail),
        "tokens_total": tokens.num_tokens(),
        "by_attribute": {name: _share(said, items, (name,)) for name in ASKED},
        "exact_match_combinations": _share(said_combinations, combinations, ASKED),
        "exact_match_drawn": _share(said_drawn, items, ASKED),
    }
    text = (
        f"{count} held-out clips, written as mp4 and read back: shape, colour, size and motion are all right in "
        f"{figures['exact_match']:.1%} of the captions, from {figures['tokens_read']} of {figures['tokens_total']} "
        f"tokens; {figures['exact_match_combinations']:.1%} of {count} clips whose combination of shape, colour and "
        f"motion was held out; {figures['exact_match_drawn']:.1%} of the first without the detour through a file."
    )
    table = Table(["file", "caption", "truth", "right"], rows)
    at_the_top = Words(
        words[:8], note="The words that the tokenizer reads in a clip, coarse level first; the truth above them."
    )
    return Part(figures, Section("Captions", text, [Clips([("", clips)]), table, at_the_top]))


def through_files(items: Sequence[dict], folder: Path, tokenizer: PyramidTokenizer) -> Tensor:
    """The clips as `pyramid caption` reads them from mp4 files, which stay in `folder`: (B, 3, T, H, W) in [-1, 1]."""
    c = tokenizer.config
    folder.mkdir(parents=True, exist_ok=True)
    read = []
    for index, item in enumerate(items):
        path = folder / f"{index:03d}.mp4"
        write_video(path, item["video"], fps=c.fps, overwrite=True)
        read.append(read_spread(path, c.num_frames, c.size)[0])
    return torch.cat(read)


def caption_all(lm: PyramidLM, videos: Tensor) -> list[str]:
    said: list[str] = []
    for batch in videos.split(_BATCH):
        said += lm.caption(lm.tokenizer.encode(batch))
    return said


def show_generation(lm: PyramidLM, judge: Judge, seed: int, count: int = 64, shown: int = 8) -> Part:
    """Clips from held-out captions at every detail, judged by their pixels."""
    tokenizer = lm.tokenizer
    items = held_out("test", count, tokenizer)
    details = range(1, tokenizer.num_levels + 1)
    right = [0] * len(details)
    rows: list[tuple[str, list[Clip]]] = []
    seconds = 0.0
    for start in range(0, count, _BATCH):
        batch = items[start : start + _BATCH]
        begin = time.perf_counter()
        tokens = lm.generate([item["caption"] for item in batch], seed=seed + start)
        full = tokenizer.decode(tokens).cpu()
        seconds += time.perf_counter() - begin
        decoded = {k: tokenizer.decode(tokens, detail=k).cpu() for k in details[:-1]} | {details[-1]: full}
        seen = {k: judge.attributes(decoded[k]) for k in details}
        verdicts = {k: [_fits(what, item) for what, item in zip(seen[k], batch, strict=True)] for k in details}
        right = [total + sum(verdicts[k]) for total, k in zip(right, details, strict=True)]
        for index in range(max(0, min(shown - start, len(batch)))):
            strip = [
                Clip(to_uint8(decoded[k][index]).numpy(), f"detail {k}", tokenizer.config.fps, good=verdicts[k][index])
                for k in details
            ]
            rows.append((batch[index]["caption"], strip))
    accuracy = [round(total / count, 4) for total in right]
    counts = [tokens.num_tokens(k) for k in details]
    figures = {
        "attribute_accuracy_by_detail": accuracy,
        "seconds_per_clip": round(seconds / count, 4),
        "n": count,
        "tokens_by_detail": counts,
    }
    text = (
        f"{count} held-out captions, written out as pyramids of tokens from the top down. Green: the judge, a separate "
        f"classifier of pixels, sees the shape, colour and motion asked for. At full detail that is {accuracy[-1]:.1%}."
    )
    table = Table(["detail", "tokens", "right"], list(zip(details, counts, accuracy, strict=True)))
    return Part(figures, Section("Generated clips, at every detail", text, [table, Clips(rows)]))


def matches(text: str, item: dict, names: Sequence[str]) -> bool:
    """Does the sentence give all these attributes rightly?"""
    read, true = grammar.parse(text), wanted(item["attributes"])
    return all(read.get(name) == true[name] for name in names)


def _fits(seen: dict[str, str], item: dict) -> bool:
    true = wanted(item["attributes"])
    return all(seen[name] == true[name] for name in JUDGED)


def _share(said: Sequence[str], items: Sequence[dict], names: Sequence[str]) -> float:
    return round(sum(matches(text, item, names) for text, item in zip(said, items, strict=True)) / len(items), 4)
