"""`folder`: a folder of clips, in any depth, as a data set of equal clips with captions.

What is in the set: with a metadata file (JSON lines), the clips that it lists, in its order; without one, every file
under `root` with a suffix of `CLIP_SUFFIXES`, sorted by path, with empty captions. Metadata is `metadata.jsonl` in
`root`, or in some of the folders right under it (`train/metadata.jsonl`, ...), or a file that is named. A line holds

    file_name or path   relative to the metadata file's folder
    caption or text     optional
    label, split        optional

A clip's split: the field, or else the folder right under `root` that it lies in.

Which frames: num_frames at `fps`, from a random place for training and from the middle otherwise. The place depends on
(seed, epoch, index) alone, not on the worker. A shorter clip repeats its last frame; `num_valid` says how many are
its own.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyramid.data.transforms import check_size
from pyramid.data.video import VideoError, probe, read_clip

CLIP_SUFFIXES = frozenset(
    ".3gp .264 .265 .asf .avi .bmp .flv .gif .h264 .h265 .hevc .ivf .jpeg .jpg .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg "
    ".mts .mxf .ogv .png .ts .vob .webm .webp .wmv .y4m".split()
)
POLICIES = ("skip", "raise")
CROPS = ("random", "center", "start", "end")


@dataclass(frozen=True)
class Clip:
    """One line of a data set; `questions`: with their answers; `fields`: all that its line of metadata holds."""

    path: Path
    caption: str = ""
    label: str | int | None = None
    split: str | None = None
    questions: tuple[tuple[str, str], ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


def find_clips(root: str | os.PathLike) -> list[Clip]:
    """Clips under `root` in any depth, sorted by path; hidden files and folders are left out, links are followed.

    Raises:
        ValueError: no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: expected a folder of clips, {'got a file' if root.exists() else 'nothing is there'}")
    found, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # links can form a loop
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in CLIP_SUFFIXES:
                found.append(Path(folder, name))
    return [Clip(path) for path in sorted(found)]


def find_metadata(root: Path) -> list[Path]:
    """`metadata.jsonl` in `root`, else those in the folders right under it, sorted; none is an empty list."""
    if (root / "metadata.jsonl").is_file():
        return [root / "metadata.jsonl"]
    return sorted(path for path in root.glob("*/metadata.jsonl") if not path.parent.name.startswith("."))


def _folder_under(root: Path, path: Path) -> str | None:
    """Name of the folder right under `root` that holds `path`; None where `path` lies elsewhere or in `root` itself."""
    inside = Path(os.path.relpath(path, root)).parts
    return inside[0] if len(inside) > 1 and inside[0] != os.pardir else None


def read_metadata(path: str | os.PathLike) -> list[Clip]:
    """Clips listed in a JSON-lines file; empty lines are passed over, other fields are ignored.

    Raises:
        ValueError: no such file, or a malformed line: file, line number, what was expected, what came.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected a metadata file of JSON lines, but there is none")
    clips = []
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                clips.append(_clip_of(line, path, number))
    return clips


def _clip_of(line: str, path: Path, number: int) -> Clip:
    where = f"{path}, line {number}"
    try:
        line.encode()
        row = json.loads(line)
    except UnicodeEncodeError:
        raise ValueError(f"{where}: expected UTF-8, got other bytes") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected a JSON object, got {line.strip()[:40]!r} ({error.msg})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
    name = row.get("file_name", row.get("path"))
    if not isinstance(name, str) or not name:
        raise ValueError(f'{where}: expected "file_name" or "path" with the name of a clip, got {name!r}')
    caption = row.get("caption", row.get("text"))
    if caption is not None and not isinstance(caption, str):
        raise ValueError(f'{where}: expected "caption" or "text" to be a string, got {type(caption).__name__}')
    label, split = row.get("label"), row.get("split")
    if not isinstance(label, str | int | None):
        raise ValueError(f'{where}: expected "label" to be a string or an integer, got {type(label).__name__}')
    if not isinstance(split, str | None):
        raise ValueError(f'{where}: expected "split" to be a string, got {type(split).__name__}')
    return Clip(path.parent / name, caption or "", label, split, _questions_of(row, where), row)


def _questions_of(row: dict, where: str) -> tuple[tuple[str, str], ...]:
    pairs = row.get("questions") or []
    fits = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    if not fits or not all(isinstance(text, str) and text for pair in pairs for text in pair):
        raise ValueError(f'{where}: expected "questions" to be a list of [question, answer], got {str(pairs)[:60]}')
    return tuple((question, answer) for question, answer in pairs)


class FolderDataset(Dataset):
    """A folder of clips, as described at the top of the file.

    Items are dicts: `video` float32 (3, T, H, W) in [-1, 1]; `caption` str; `path` str; `label` str, int or None;
    `questions`, pairs with their answers; `num_valid` int, the frames before the last one repeats.

    Args:
        root: the folder.
        num_frames, size, fps, fit: the shape of each clip; `fps=None` takes frames at the clip's own rate.
        policy: "raise" stops at a clip that cannot be read; "skip" gives the next readable clip in its place, counts
            it and leaves it out from then on (`num_broken`, `summary`).
        split: which split; None for all.
        metadata: a JSON-lines file, instead of `metadata.jsonl`.
        crop: "random", "center", "start" or "end"; by default random unless `split` is something other than "train".
        clips: these clips, in the place of those that `root` and its metadata name.
        seed: of the random crops.

    Raises:
        ValueError: a bad argument, folder or metadata line; nothing in the folder or split.
        VideoError: from an item, under policy "raise", or where no clip can be read.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        num_frames: int,
        size: tuple[int, int],
        fps: float | None = None,
        fit: str = "crop",
        policy: str = "skip",
        split: str | None = None,
        *,
        metadata: str | os.PathLike | None = None,
        crop: str | None = None,
        seed: int = 0,
        clips: Sequence[Clip] | None = None,
    ):
        crop = crop or ("random" if split in (None, "train") else "center")
        check_size("FolderDataset", size, fit)
        if num_frames < 1:
            raise ValueError(f"FolderDataset: num_frames must be at least 1, got {num_frames}")
        if fps is not None and fps <= 0:
            raise ValueError(f"FolderDataset: fps must be positive, got {fps}")
        if policy not in POLICIES:
            raise ValueError(f"FolderDataset: policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        if crop not in CROPS:
            raise ValueError(f"FolderDataset: crop must be one of {', '.join(CROPS)}, got {crop!r}")
        self.root, self.split, self.num_frames, self.size = Path(root), split, num_frames, tuple(size)
        self.fps, self.fit, self.policy, self.crop, self.seed = fps, fit, policy, crop, seed
        self.clips = self._list(metadata) if clips is None else list(clips)
        self._share()
        self._lengths: dict[Path, tuple[float, float]] = {}  # (seconds, fps) by header, of the clips seen so far

    def _list(self, metadata) -> list[Clip]:
        if not self.root.is_dir():
            find_clips(self.root)  # says what is wrong
        files = [Path(metadata)] if metadata is not None else find_metadata(self.root)
        clips = [clip for file in files for clip in read_metadata(file)]
        if not any(file.parent == self.root for file in files) and metadata is None:
            described = {file.parent for file in files}
            clips += [clip for clip in find_clips(self.root) if not described & set(clip.path.parents)]
        clips = [clip if clip.split else replace(clip, split=_folder_under(self.root, clip.path)) for clip in clips]
        source = ", ".join(map(str, files)) or self.root
        if not clips:
            raise ValueError(
                f"{source}: expected at least one clip, found "
                + ("no line" if files else "no file with a known suffix")
            )
        chosen = [clip for clip in clips if self.split in (None, clip.split)]
        if not chosen:
            known = ", ".join(sorted({clip.split for clip in clips if clip.split})) or "none: no clip has a split"
            raise ValueError(f"{source}: expected clips of split {self.split!r}, found {known}")
        return chosen

    def subset(self, indices: Sequence[int], crop: str | None = None, num_frames: int | None = None) -> FolderDataset:
        """Some of the clips as a data set of their own, which counts its own broken ones; `crop` and `num_frames` as
        the class says, by default as here."""
        part = copy.copy(self)
        part.clips, part.crop, part._lengths = [self.clips[index] for index in indices], crop or self.crop, {}
        part.num_frames = self.num_frames if num_frames is None else num_frames
        part._share()
        return part

    def _share(self) -> None:
        """Shared memory: worker processes see the epoch that is set here, and their broken clips are seen here."""
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._broken = torch.zeros(len(self.clips), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.clips)

    def set_epoch(self, epoch: int) -> None:
        """Gives another random crop of each clip. Reaches worker processes that run already."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self.clips):
            raise IndexError(f"FolderDataset: index must be in [0, {len(self.clips)}), got {index}")
        if self.policy == "raise":
            return self._read(index)
        for step in range(len(self.clips)):
            candidate = (index + step) % len(self.clips)
            if self._broken[candidate]:
                continue
            try:
                return self._read(candidate)
            except VideoError:
                self._broken[candidate] = True
        raise VideoError(
            f"{self.root}: expected at least one readable clip, but none of {len(self.clips)} is: {self._reasons()}"
        )

    def _read(self, index: int) -> dict:
        clip = self.clips[index]
        video = self._read_video(clip.path, self._draw(index))
        num_valid = video.shape[1]
        if num_valid < self.num_frames:
            video = torch.cat([video, video[:, -1:].expand(-1, self.num_frames - num_valid, -1, -1)], dim=1)
        return {
            "video": video,
            "caption": clip.caption,
            "path": str(clip.path),
            "label": clip.label,
            "questions": list(clip.questions),
            "num_valid": num_valid,
        }

    def _draw(self, index: int) -> float:
        """Where in its room to move the crop starts, in [0, 1]."""
        if self.crop == "random":
            return np.random.default_rng((self.seed, int(self._epoch), index)).random()
        return {"start": 0.0, "center": 0.5, "end": 1.0}[self.crop]

    def _read_video(self, path: Path, place: float) -> Tensor:
        shape: dict[str, Any] = {"num_frames": self.num_frames, "fps": self.fps, "size": self.size, "fit": self.fit}
        if place == 0.0:
            return read_clip(path, **shape)
        if path not in self._lengths:
            info = probe(path)
            self._lengths[path] = (info.seconds or (info.frames or 0) / info.fps, info.fps)
        seconds, rate = self._lengths[path]
        rate = self.fps or rate
        start = max(0.0, seconds - self.num_frames / rate) * place
        start = int(start * rate) / rate  # on the grid of frames, so that the last of them is inside
        try:
            return read_clip(path, start=start, **shape)
        except VideoError:
            if start == 0.0:
                raise
            return read_clip(path, **shape)  # the header promised more than the file holds

    @property
    def num_broken(self) -> int:
        """Clips that could not be read so far, in all workers."""
        return int(self._broken.sum())

    def summary(self) -> str:
        """One line: how many clips, how many could not be read, and why the first of them."""
        text = f"{self.root}: {len(self.clips)} clips, {self.num_broken} could not be read"
        return f"{text}: {self._reasons()}" if self.num_broken else text

    def _reasons(self, most: int = 5) -> str:
        broken = self._broken.nonzero().flatten().tolist()
        more = [f"and {len(broken) - most} more"] if len(broken) > most else []
        return "; ".join([self._reason(index) for index in broken[:most]] + more)

    def _reason(self, index: int) -> str:
        try:
            probe(self.clips[index].path)
        except VideoError as error:
            return str(error)
        return f"{self.clips[index].path}: could not be read"
