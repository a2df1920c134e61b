"""Which clips a run trains on: one config for every source, and the data sets it names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from pyramid.data.folder import FolderDataset
from pyramid.data.recode import RecodedClips
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.data.video import VideoError, probe


@dataclass(frozen=True)
class DataConfig:
    """`source` "shapes": the procedural world, `preset` "mini", "single" or "full"; "folder": the clips under `path`,
    with captions from `metadata` (default: metadata.jsonl in the folder), broken ones by `policy`. `num_clips`: of the
    training split of shapes; `num_val`: clips held out for validation; `num_frames`: of a training clip, by default the
    model's, 1 for images, of which as many pixels teach what things look like sooner (docs/experiments.md);
    `recoded`: share of the training clips of shapes that the encoder sees as a video codec leaves them (`recode.py`);
    those of a folder were files already; `image_share`: share of the steps of a tokenizer's training on one frame of
    each clip, which is an image; `crop`: where in the clips of a folder training takes its frames, "random", "center",
    "start" or "end"; `jitter`: how much training clips are turned, scaled and shifted (`jitter.py`), 0 to 1. Stills
    among the clips of a folder are clips that stand still."""

    source: Literal["shapes", "folder"] = "shapes"
    preset: str = "mini"
    seed: int = 0
    num_clips: int = 1 << 20
    num_val: int = 128
    num_frames: int | None = None
    recoded: float = 0.0
    image_share: float = 0.0
    crop: Literal["random", "center", "start", "end"] = "random"
    jitter: float = 0.0
    path: str | None = None
    metadata: str | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    policy: Literal["skip", "raise"] = "skip"

    def __post_init__(self) -> None:
        if self.source == "folder" and self.path is None:
            raise ValueError("path: a folder of clips is needed for source=folder, got none")
        for name in ("recoded", "image_share", "jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        for name in ("num_clips", "num_val", "num_frames"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")


def make_datasets(config: DataConfig, num_frames: int, size: tuple[int, int], fps: float) -> tuple[Dataset, Dataset]:
    """Training and validation clips of this length (those to train on: `config.num_frames` where it says so), size
    (height, width) and frame rate; items as `folder.py` and `shapes.py` say.

    Of a folder with splits, by its metadata or its folders, "val" (or "validation") is what is validated on; "train" is
    what is trained on, or without such a split all that is not "val", "validation" or "test". Where nothing is there
    to validate on, a random tenth of the training clips is held out, `num_val` at most, of those that open; the same
    clips for the same seed.

    Raises ValueError for an unknown preset, a missing folder, nothing to train on, fewer than two clips to share out,
    or sides that are odd where clips are to be recoded.
    """
    if config.source == "shapes":
        return _shapes(config, num_frames, size, fps)
    shape: dict[str, Any] = {"num_frames": config.num_frames or num_frames, "size": size, "fps": fps, "fit": config.fit}
    shape |= {"policy": config.policy, "metadata": config.metadata, "seed": config.seed}
    root = Path(config.path or "")
    everything = FolderDataset(root, crop=config.crop, **shape)
    by_split: dict[str | None, list[int]] = {}
    for index, clip in enumerate(everything.clips):
        split = "val" if clip.split == "validation" else clip.split
        by_split.setdefault(split if split in ("train", "val", "test") else None, []).append(index)
    splits = by_split.keys() - {None}
    if splits <= {"train"}:  # maybe just a folder of that name among others
        train = everything
    elif chosen := by_split.get("train") or by_split.get(None):
        train = everything.subset(chosen)
    else:
        raise ValueError(f"{root}: expected clips to train on, found only those of {' and '.join(sorted(splits))}")
    if "val" in by_split:
        return train, everything.subset(by_split["val"], "center", num_frames)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed)).tolist()
    count = min(config.num_val, max(1, len(train) // 10))
    held_out = set(islice((index for index in order if _opens(train.clips[index].path)), count))
    if not held_out or len(held_out) == len(train):
        raise ValueError(f"{root}: expected 2 clips or more that open, one to validate on, got {len(held_out)}")
    kept = [index for index in range(len(train)) if index not in held_out]
    return train.subset(kept), train.subset(sorted(held_out), "center", num_frames)


def _opens(path: Path) -> bool:
    try:
        probe(path)
    except VideoError:
        return False
    return True


def _shapes(config: DataConfig, num_frames: int, size: tuple[int, int], fps: float) -> tuple[Dataset, Dataset]:
    world = preset(config.preset, height=size[0], width=size[1], num_frames=num_frames, fps=fps, seed=config.seed)
    trained = replace(world, num_frames=config.num_frames or num_frames)
    train: Dataset = ShapesDataset(trained, "train", config.num_clips)
    if config.recoded:
        if size[0] % 2 or size[1] % 2:
            raise ValueError(f"recoded: expected clips with even sides, got {size[0]}x{size[1]}")
        train = RecodedClips(train, config.recoded, seed=config.seed)
    return train, ShapesDataset(world, "val", config.num_val)
