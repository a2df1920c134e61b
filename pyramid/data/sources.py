"""Which clips a run trains on: one config for every source, and the data sets it names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from pyramid.data.folder import FolderDataset
from pyramid.data.shapes import ShapesDataset, preset


@dataclass(frozen=True)
class DataConfig:
    """`source` "shapes": the procedural world, `preset` "mini" or "full"; "folder": the clips under `path`, with
    captions from `metadata` (default: metadata.jsonl in the folder), broken ones by `policy`. `num_clips`: of the
    training split of shapes; `num_val`: clips held out for validation."""

    source: Literal["shapes", "folder"] = "shapes"
    preset: str = "mini"
    seed: int = 0
    num_clips: int = 1 << 20
    num_val: int = 128
    path: str | None = None
    metadata: str | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    policy: Literal["skip", "raise"] = "skip"

    def __post_init__(self) -> None:
        if self.source == "folder" and self.path is None:
            raise ValueError("path: a folder of clips is needed for source=folder, got none")


def make_datasets(config: DataConfig, num_frames: int, size: tuple[int, int], fps: float) -> tuple[Dataset, Dataset]:
    """Training and validation clips of this length, size (height, width) and frame rate; items as `folder.py` and
    `shapes.py` say. A folder without a split "val" is cut by index: the last clips, a tenth at most, are held out.

    Raises ValueError for an unknown preset, a missing folder, or one with fewer than two clips.
    """
    if config.source == "shapes":
        world = preset(config.preset, height=size[0], width=size[1], num_frames=num_frames, fps=fps, seed=config.seed)
        return ShapesDataset(world, "train", config.num_clips), ShapesDataset(world, "val", config.num_val)
    shape = {"num_frames": num_frames, "size": size, "fps": fps, "fit": config.fit, "policy": config.policy}
    shape |= {"metadata": config.metadata, "seed": config.seed}
    root = Path(config.path or "")
    everything = FolderDataset(root, crop="random", **shape)
    splits = {clip.split for clip in everything.clips}
    if {"train", "val"} <= splits or ((root / "train").is_dir() and (root / "val").is_dir()):
        return FolderDataset(root, split="train", **shape), FolderDataset(root, split="val", **shape)
    held_out = min(config.num_val, max(1, len(everything.clips) // 10))
    if len(everything.clips) < 2:
        raise ValueError(f"{root}: expected at least 2 clips, one of them to validate on, got {len(everything.clips)}")
    val = FolderDataset(root, crop="center", **shape)
    val.clips, everything.clips = val.clips[-held_out:], everything.clips[:-held_out]
    return everything, val
