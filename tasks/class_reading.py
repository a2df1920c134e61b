"""How well the classes of clips are told from the first levels of their pyramids, at every detail, beside the same from
pixels and what takes no learning: `classify`. Rows of plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pyramid.metrics import psnr
from pyramid.probe import code_features
from pyramid.tokens import TokenPyramid
from tasks.classifiers import CodeClassifier, Fitted, PixelClassifier, fit
from tasks.held_out import HeldOutClip, Part, Source
from tasks.judging import as_bytes

if TYPE_CHECKING:
    from pyramid.tokenizer import PyramidTokenizer

Row = dict[str, Any]
Track = Callable[[Iterable[Any], str, int], Iterator[Any]]

_BATCH = 32
_RECONSTRUCTED = 64  # clips whose PSNR is measured
_THUMB = (4, 16, 16)  # frames and sides that nearest clips are looked for in, of pixels


@dataclass(frozen=True, eq=False)
class LabelledClips:
    """`ids` (N, tokens) int32, all levels, flat; `pixels` uint8 (N, 3, T, H, W); `targets` (N,) int64 each, -1 where a
    clip has no class, or one that no training clip has; `captions`, empty where a clip has none, no entry where no clip
    may have one."""

    ids: Tensor
    pixels: Tensor
    targets: dict[str, Tensor]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.ids)


class Budget(NamedTuple):
    """`clips`: to learn from, at most; `minutes`: of each classifier that reads codes; `pixel_minutes`: of that of
    pixels, whose rival's words were trained before."""

    clips: int
    minutes: float
    pixel_minutes: float


@torch.inference_mode()
def read_clips(
    tokenizer: PyramidTokenizer, source: Source, part: Part, indices: Sequence[int], track: Track, what: str
) -> LabelledClips:
    """The clips of a source, tokenized."""
    ids, pixels, captions = [], [], []
    targets: dict[str, list[int]] = {name: [] for name in source.classes}
    batches: Iterator[list[HeldOutClip]] = source.clips(part, indices, _BATCH)
    for clips in track(batches, what, -(-len(indices) // _BATCH)):
        video = torch.stack([clip.video for clip in clips])
        ids.append(tokenizer.encode(video.to(tokenizer.device)).flatten().int().cpu())
        pixels.append(as_bytes(video))
        captions += [clip.caption for clip in clips]
        for name, classes in source.classes.items():
            places = {value: place for place, value in enumerate(classes)}
            targets[name] += [places.get(clip.labels.get(name, ""), -1) for clip in clips]
    if not ids:
        raise ValueError(f"{what}: expected one that can be read or more, got none of {len(indices)}")
    known = {name: torch.tensor(values) for name, values in targets.items()}
    return LabelledClips(torch.cat(ids), torch.cat(pixels), known, captions if any(captions) else [])


def flat_prefix(tokenizer: PyramidTokenizer, ids: Tensor, num_frames: int, detail: int) -> Tensor:
    """Flat ids of all levels -> those of the first `detail`, int64."""
    return tokens_of(tokenizer, ids, num_frames).truncate(detail).flatten()


def tokens_of(tokenizer: PyramidTokenizer, ids: Tensor, num_frames: int) -> TokenPyramid:
    """Of flat ids of all levels."""
    height, width = tokenizer.config.size
    pyramids = tokenizer.pyramids(num_frames)
    return TokenPyramid.unflatten(ids.long(), pyramids, num_frames=num_frames, height=height, width=width)


def classify(
    tokenizer: PyramidTokenizer,
    source: Source,
    train: LabelledClips,
    test: LabelledClips,
    details: Sequence[int],
    *,
    budget: Budget,
    seeds: Sequence[int],
    track: Track,
) -> tuple[list[Row], dict[int, Fitted]]:
    """Accuracy of every target by a `CodeClassifier` at each detail and by a `PixelClassifier`, each fitted within
    the budget on each of the seeds; by the training clip whose codes, or pixels, are nearest; by the most frequent
    class. With the rows the classifiers of the last seed, by detail."""
    num_frames = train.pixels.shape[2]
    num_tokens = [sum(p.offsets[detail] for p in tokenizer.pyramids(num_frames)) for detail in details]
    rows: list[Row] = []
    majority = {name: _share(test.targets[name], _usual(values)) for name, values in train.targets.items()}
    rows.append({"of": "most frequent", **majority})
    rows.append({"of": "nearest pixels", **_nearest(_thumbs(train.pixels), _thumbs(test.pixels), train, test)})
    quality = _reconstruction(tokenizer, test, details)
    features = [_features(tokenizer, clips, num_frames) for clips in (train, test)]
    for detail, tokens in zip(details, num_tokens, strict=True):
        learned, asked = (torch.cat(parts[:detail], dim=1) for parts in features)
        rows.append({"of": "nearest code", "detail": detail, "tokens": tokens, **_nearest(learned, asked, train, test)})
    counts = {name: len(classes) for name, classes in source.classes.items()}
    fitted: dict[int, Fitted] = {}
    jobs = [(seed, detail) for seed in seeds for detail in [*details, 0]]
    for seed, detail in track(jobs, "classifiers", len(jobs)):
        make: Callable[[], nn.Module]
        if detail:
            make = partial(CodeClassifier, tokenizer, num_frames, detail, counts)
            inputs = [flat_prefix(tokenizer, clips.ids, num_frames, detail) for clips in (train, test)]
        else:
            make, inputs = partial(PixelClassifier, counts), [train.pixels, test.pixels]
        minutes = budget.minutes if detail else budget.pixel_minutes
        done = fit(make, (inputs[0], train.targets), (inputs[1], test.targets), minutes=minutes, seed=seed)
        row: Row = {"of": "codes" if detail else "pixels", "seed": seed}
        if detail:
            row |= {"detail": detail, "tokens": num_tokens[details.index(detail)], "psnr": quality[detail]}
            fitted[detail] = done
        size = sum(parameter.numel() for parameter in done.model.parameters())
        rows.append(row | done.accuracy | {"steps": done.steps, "a_second": done.clips_a_second, "parameters": size})
    return rows, fitted


def _usual(values: Tensor) -> Tensor:
    return values[values >= 0].mode().values


def _share(truth: Tensor, said: Tensor) -> float | None:
    known = truth >= 0
    return float((truth == said)[known].float().mean()) if known.any() else None


def _nearest(train_features: Tensor, test_features: Tensor, train: LabelledClips, test: LabelledClips) -> Row:
    best = _nearest_clips(train_features, test_features)
    return {name: _share(test.targets[name], values[best]) for name, values in train.targets.items()}


def _nearest_clips(train_features: Tensor, test_features: Tensor) -> Tensor:
    """Which training clip has the nearest features by cosine, what all have in common taken away."""
    mean = train_features.mean(dim=0)
    a, b = (nn.functional.normalize(part - mean, dim=1) for part in (test_features, train_features))
    return torch.cat([(part @ b.T).argmax(dim=1) for part in a.split(512)])


def nearest_captions(tokenizer: PyramidTokenizer, train: LabelledClips, test: LabelledClips, detail: int) -> list[str]:
    """For each test clip the caption of the training clip whose codes are nearest at a detail, of those that have a
    caption."""
    num_frames = train.pixels.shape[2]
    features = [torch.cat(_features(tokenizer, clips, num_frames)[:detail], dim=1) for clips in (train, test)]
    told = [place for place, caption in enumerate(train.captions) if caption]
    return [train.captions[told[index]] for index in _nearest_clips(features[0][told], features[1]).tolist()]


def _thumbs(pixels: Tensor) -> Tensor:
    return torch.cat(
        [nn.functional.adaptive_avg_pool3d(part.float() / 255, _THUMB).flatten(1) for part in pixels.split(256)]
    )


def _features(tokenizer: PyramidTokenizer, clips: LabelledClips, num_frames: int) -> list[Tensor]:
    parts = [code_features(tokenizer, tokens_of(tokenizer, ids, num_frames)) for ids in clips.ids.split(256)]
    return [torch.cat(level).cpu() for level in zip(*parts, strict=True)]


@torch.inference_mode()
def _reconstruction(tokenizer: PyramidTokenizer, test: LabelledClips, details: Sequence[int]) -> dict[int, float]:
    """Mean PSNR in dB of the first test clips, by detail."""
    pixels = test.pixels[:_RECONSTRUCTED]
    video = pixels.float() / 127.5 - 1
    tokens = tokens_of(tokenizer, test.ids[: len(pixels)], pixels.shape[2]).to(tokenizer.device)
    quality = {}
    for detail in details:
        parts = [tokenizer.decode(tokens[slice(i, i + _BATCH)], detail).cpu() for i in range(0, len(pixels), _BATCH)]
        quality[detail] = float(psnr(torch.cat(parts), video).mean())
    return quality
