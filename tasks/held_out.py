"""What a model is evaluated on: `shapes`, a folder of clips with splits and labels, or files.

A source has held-out clips, which are scored, and, for the probes, training clips; both are read by index. Labels are
what is to be understood of a clip, by name: the attributes of `shapes`, the fields of a folder's metadata.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from pyramid.data.folder import Clip, FolderDataset
from pyramid.data.grammar import content_groups
from pyramid.data.shapes import SPLITS, ShapesConfig, ShapesDataset
from pyramid.data.transforms import RESIZE_FILTER
from pyramid.data.video import VideoError
from pyramid.words import content_words
from tasks.judge import ATTRIBUTES, wanted

HELD_OUT = ("val", "validation", "test")  # splits of a folder that are evaluated unless told otherwise
USUAL_TARGETS = ("label", "alphabet")  # fields of metadata that are probed where they are there
SHAPES_CLIPS = 400  # a seed, unless told otherwise

Part = Literal["held_out", "train"]


@dataclass(frozen=True, eq=False)
class HeldOutClip:
    """`video` (3, T, H, W) in [-1, 1], of which the first `num_valid` frames are the clip's own; `labels`: the class of
    each target that the clip has; `says`: what its caption says, each thing as the words that name it; `caption`: of a
    clip of files."""

    index: int
    video: Tensor
    num_valid: int
    labels: dict[str, str]
    says: tuple[frozenset[str], ...] = ()
    caption: str = ""


class Source(Protocol):
    """`classes`: the classes of each target, in order; empty where there is nothing to probe, and `no_probe` says why.
    `broken`: the clips that could not be read so far, with the reason."""

    classes: dict[str, list[str]]
    no_probe: str
    broken: dict[str, str]

    def size(self, part: Part) -> int:
        """How many clips there are."""
        ...

    def clips(self, part: Part, indices: Sequence[int], batch_size: int) -> Iterator[list[HeldOutClip]]:
        """The clips, in order, in lists of at most `batch_size`; those that cannot be read are left out and named in
        `broken`, or raise VideoError, by the policy."""
        ...

    def describe(self) -> dict[str, Any]:
        """For the protocol: what the clips are, and what was done to them."""
        ...


class ShapesSource:
    """The procedural world; probes learn from its training split. A clip of several objects has no labels, as nothing
    says which of them is meant. Raises ValueError for an unknown split."""

    no_probe = ""

    def __init__(self, world: ShapesConfig, split: str = "test", name: str = "mini") -> None:
        if split not in SPLITS or split == "train":
            raise ValueError(f"--split: expected one of {', '.join(SPLITS[1:])} of shapes, got {split!r}")
        self.world, self.name = world, name
        self.sets = {"held_out": ShapesDataset(world, split), "train": ShapesDataset(world, "train")}
        self.classes = {name: list(values) for name, values in ATTRIBUTES.items()}
        self.broken: dict[str, str] = {}

    def size(self, part: Part) -> int:
        return len(self.sets[part])

    def clips(self, part: Part, indices: Sequence[int], batch_size: int) -> Iterator[list[HeldOutClip]]:
        for start in range(0, len(indices), batch_size):
            items = self.sets[part].__getitems__(indices[start : start + batch_size])
            yield [
                HeldOutClip(
                    item["index"],
                    item["video"],
                    self.world.num_frames,
                    wanted(item["attributes"]) if len(item["attributes"].objects) == 1 else {},
                    content_groups(item["attributes"]),
                )
                for item in items
            ]

    def describe(self) -> dict[str, Any]:
        return {
            "data": f"shapes:{self.name}",
            "split": self.sets["held_out"].split,
            "data_seed": self.world.seed,
            "size": [self.world.height, self.world.width],
            "frames": self.world.num_frames,
            "fps": self.world.fps,
            "resize_filter": "none: rendered at this size",
            "crop": "none",
            "rate": "rendered",
        }


class ClipsSource:
    """Clips of files, from a folder or named one by one.

    Args:
        held_out: the clips to score. train: those that probes learn from; None where there are none.
        targets: fields of the metadata to probe; by default those of `USUAL_TARGETS` that name classes.
        policy: "skip" or "raise", for clips that cannot be read.
        name: what the protocol calls the data; the folder by default.

    Raises ValueError for a target that names no classes of the training clips.
    """

    def __init__(
        self,
        held_out: FolderDataset,
        train: FolderDataset | None = None,
        targets: Sequence[str] | None = None,
        policy: str = "skip",
        name: str | None = None,
    ) -> None:
        self.held_out, self.train, self.policy = held_out, train, policy
        self.name = name or str(held_out.root)
        self.broken: dict[str, str] = {}
        self.classes: dict[str, list[str]] = {}
        self.no_probe = "" if train is not None else "there is no training split to learn a probe from"
        learned = train.clips if train is not None else []
        for target in (targets or USUAL_TARGETS) if learned else ():
            counts = Counter(value for clip in learned if (value := _label(clip, target)) is not None)
            # Names of single clips are no classes.
            if len(counts) >= 2 and sum(counts.values()) >= 2 * len(counts):
                self.classes[target] = sorted(counts)
            elif targets:
                found = f"{len(counts)} values on {sum(counts.values())} clips"
                raise ValueError(f"--target {target}: expected two classes or more of two clips or more, got {found}")
        if targets and train is None:
            raise ValueError(f"--target {targets[0]}: expected a training split to learn a probe from, found none")
        if not self.classes and not self.no_probe:
            self.no_probe = f"the metadata of the training clips has no classes in {' or '.join(USUAL_TARGETS)}"

    def size(self, part: Part) -> int:
        return len(self._set(part)) if part == "held_out" or self.train is not None else 0

    def _set(self, part: Part) -> FolderDataset:
        dataset = self.held_out if part == "held_out" else self.train
        assert dataset is not None  # nothing is drawn of a part without clips
        return dataset

    def clips(self, part: Part, indices: Sequence[int], batch_size: int) -> Iterator[list[HeldOutClip]]:
        batch: list[HeldOutClip] = []
        for index in indices:
            clip = self._read(part, index)
            batch += [clip] if clip is not None else []
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _read(self, part: Part, index: int) -> HeldOutClip | None:
        dataset = self._set(part)
        clip = dataset.clips[index]
        if str(clip.path) in self.broken:
            return None
        try:
            item = dataset[index]
        except VideoError as error:
            if self.policy == "raise":
                raise
            self.broken[str(clip.path)] = str(error)
            return None
        labels = {name: label for name in self.classes if (label := _label(clip, name)) is not None}
        says = tuple(frozenset([word]) for word in content_words(item["caption"]))
        return HeldOutClip(index, item["video"], item["num_valid"], labels, says, item["caption"])

    def describe(self) -> dict[str, Any]:
        dataset = self.held_out
        splits = sorted({clip.split or "none" for clip in dataset.clips})
        return {
            "data": self.name,
            "split": ", ".join(splits),
            "size": list(dataset.size),
            "frames": dataset.num_frames,
            "fps": dataset.fps,
            "resize_filter": RESIZE_FILTER,
            "crop": f"{dataset.fit}, centred in space and in time",
            "rate": "the file's own" if dataset.fps is None else f"resampled to {dataset.fps:g} a second",
        }


def _label(clip: Clip, target: str) -> str | None:
    """The class that a field of the metadata names; None where the clip has no such field."""
    value = clip.fields.get(target)
    if value is not None and not isinstance(value, str | int):
        raise ValueError(f"{clip.path}: {target}: expected a string or an integer as class, got {value!r}")
    return None if value is None else str(value)


def clips_source(
    paths: Sequence[Path],
    *,
    num_frames: int,
    size: tuple[int, int],
    fps: float | None,
    fit: str = "crop",
    policy: str = "skip",
    split: str | None = None,
    targets: Sequence[str] | None = None,
) -> ClipsSource:
    """A folder, or some files, as `paths` say, read as clips of this length, size (height, width) and rate.

    Of a folder, the clips of `split` are scored; by default those of "val", "validation" and "test", or all of a folder
    that has no such split and none named "train". Probes learn from the split "train".

    Raises ValueError for a folder without such clips, or a target that names no classes.
    """
    options: dict[str, Any] = {"num_frames": num_frames, "size": size, "fps": fps, "fit": fit, "policy": "raise"}
    if not paths[0].is_dir():
        files = [Clip(path) for path in paths]
        if split is not None:
            raise ValueError(f"--split: expected a folder of clips with splits, got files, such as {paths[0]}")
        held_out = FolderDataset(paths[0].parent, crop="center", clips=files, **options)
        name = str(paths[0]) if len(paths) == 1 else f"{len(paths)} files, the first {paths[0]}"
        return ClipsSource(held_out, None, targets, policy, name)
    root = paths[0]
    whole = FolderDataset(root, crop="center", **options)
    by_split = Counter(clip.split for clip in whole.clips)

    def those(belongs: Callable[[str | None], bool]) -> list[int]:
        return [index for index, clip in enumerate(whole.clips) if belongs(clip.split)]

    if split is not None:
        chosen, wish = those(lambda name: name == split), f"split {split!r}"
    else:
        chosen, wish = those(lambda name: name in HELD_OUT), f"split {', '.join(HELD_OUT)}"
        if not chosen and "train" not in by_split:
            chosen = those(lambda name: True)
    if not chosen:
        known = ", ".join(sorted(name for name in by_split if name)) or "none: no clip has a split"
        raise ValueError(f"{root}: expected clips of {wish}, found {known}; name one with --split")
    learned = those(lambda name: name == "train") if split != "train" else []
    return ClipsSource(whole.subset(chosen), whole.subset(learned) if learned else None, targets, policy)
