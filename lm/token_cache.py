"""Clips tokenized once: `write_tokens` fills a folder with safetensors shards, `TokenDataset` trains from it.

    FOLDER/index.json            format, version, hash of the tokenizer, geometry, what the clips and hints are of
    FOLDER/00000.safetensors     ids (N, S), hint (N, S) int32 or int64; share (N, cells) uint8; task (N,) uint8
    FOLDER/00000.jsonl           a line a clip: what is said of it

`ids` are in the order of `TokenPyramid.flatten`. A clip has one hint beside: of one of the tasks that need another clip
tokenized (conditions.py), drawn once. Shards appear whole, and a run that was stopped goes on after the last of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from lm.conditions import TASKS, Condition, draw_condition, hinted
from pyramid.files import replacing
from pyramid.tokenizer import PyramidTokenizer
from pyramid.tokens import TokenPyramid

FORMAT, FORMAT_VERSION = "pyramid.token_cache", 1
SHARD = 512
_SAID = ("caption", "paraphrase", "label", "questions")


def tokenizer_hash(tokenizer: PyramidTokenizer) -> str:
    """Of all weights: tokens of another tokenizer mean nothing."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_tokens(
    tokenizer: PyramidTokenizer,
    dataset: Dataset,
    folder: str | Path,
    *,
    count: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    hints: Sequence[str] | None = None,
    sources: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, written: None,
) -> Path:
    """Tokenize the first `count` clips (all by default) of a map-style data set, items as `ClipData` has them, into
    `folder`, whole shards that are there left as they are. Batch i of `batch_size` clips gets hints of the task
    i mod len(hints); none without `hints`. `sources`: names of what the clips are of, kept in index.json. `progress` is
    told how many clips are done, and how many of them by this call.

    Raises ValueError for a folder of other tokens, clips or hints.
    """
    folder, hints = Path(folder), hinted() if hints is None else hints
    folder.mkdir(parents=True, exist_ok=True)
    size = len(dataset)  # type: ignore[arg-type]  # map-style sets have a length
    count = size if count is None else min(count, size)
    c = tokenizer.config
    levels: Any = tokenizer.levels.levels
    index = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "tokenizer": tokenizer_hash(tokenizer),
        "num_frames": c.num_frames,
        "height": c.height,
        "width": c.width,
        "sources": list(sources),
        "hints": list(hints),
        "seed": seed,
        "batch_size": batch_size,
        "shard": SHARD,
        "clips": count,
    }
    file = folder / "index.json"
    if file.exists() and (found := json.loads(file.read_text(encoding="utf8"))) != index:
        changed = sorted(key for key in index | found if index.get(key) != found.get(key))
        raise ValueError(f"write_tokens: {folder}: expected an empty folder or one of the same, got another {changed}")
    with replacing(file) as part:
        part.write_text(json.dumps(index, indent=2) + "\n", encoding="utf8")
    dtype = torch.int32 if max(level.quantizer.codebook_size for level in levels) <= 1 << 31 else torch.int64
    written = 0
    for number, start in enumerate(range(0, count, SHARD)):
        name = folder / f"{number:05d}.safetensors"
        stop = min(start + SHARD, count)
        if not name.exists():
            _write_shard(tokenizer, dataset, name, range(start, stop), batch_size, seed, hints, dtype)
            written += stop - start
            progress(stop, written)
    return folder


def _write_shard(
    tokenizer: PyramidTokenizer,
    dataset: Any,
    name: Path,
    clips: range,
    batch_size: int,
    seed: int,
    hints: Sequence[str],
    dtype: torch.dtype,
) -> None:
    columns: dict[str, list[Tensor]] = {"ids": []}
    lines = []
    for start in range(clips.start, clips.stop, batch_size):
        indices = list(range(start, min(start + batch_size, clips.stop)))
        many = getattr(dataset, "__getitems__", None)
        items = many(indices) if many is not None else [dataset[index] for index in indices]
        video = torch.stack([item["video"] for item in items])
        columns["ids"].append(tokenizer.encode(video).flatten().to(dtype).cpu())
        if hints:
            task = hints[start // batch_size % len(hints)]
            generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
            shown = draw_condition(tokenizer, task, video, generator)
            assert shown.hint is not None  # hinted tasks have one
            columns.setdefault("hint", []).append(shown.hint.flatten().to(dtype).cpu())
            share = torch.cat([part.flatten(1) for part in shown.share], dim=1)
            columns.setdefault("share", []).append((share * 255).round().to(torch.uint8).cpu())
            columns.setdefault("task", []).append(torch.full((len(items),), hints.index(task), dtype=torch.uint8))
        lines += [json.dumps({key: item[key] for key in _SAID if item.get(key)}) for item in items]
    with replacing(name.with_suffix(".jsonl")) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf8")
    with replacing(name) as part:
        save_file({key: torch.cat(values) for key, values in columns.items()}, part)


class InTurns(Dataset):
    """Map-style data sets one clip after the other in turns, those that are through left out, until all are: every clip
    once. Then all begin again, without end, told so by `set_epoch` where they have it."""

    def __init__(self, sets: Sequence[Any]) -> None:
        self.sets = list(sets)
        self.lengths = [len(clips) for clips in self.sets]

    def __len__(self) -> int:
        return 1 << 40

    def place(self, index: int) -> tuple[int, int, int]:
        """-> number of the set, epoch, row."""
        epoch, rest = divmod(index, sum(self.lengths))
        begin = 0
        for end in sorted(set(self.lengths)):
            there = [number for number, length in enumerate(self.lengths) if length >= end]
            if rest < (end - begin) * len(there):
                return there[rest % len(there)], epoch, begin + rest // len(there)
            rest -= (end - begin) * len(there)
            begin = end
        raise AssertionError("every index has a place")

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        places = [self.place(index) for index in indices]
        found: dict[tuple[int, int, int], dict] = {}
        for number, epoch in sorted({place[:2] for place in places}):
            clips: Any = self.sets[number]
            if hasattr(clips, "set_epoch"):
                clips.set_epoch(epoch)
            rows = [row for *where, row in places if tuple(where) == (number, epoch)]
            many = getattr(clips, "__getitems__", None)
            items = many(rows) if many is not None else [clips[row] for row in rows]
            found |= {(number, epoch, row): item for row, item in zip(rows, items, strict=True)}
        return [found[place] for place in places]


class TokenDataset(Dataset):
    """The clips of a folder that `write_tokens` filled. Items are dicts: `ids` (S,), `caption`, `paraphrase` (the
    caption where there is no other), `label` (may be empty) and `questions`, pairs with answers (may be none); with
    hints `hint` (S,), `share` (cells,) and `task`, an index of `hinted()`. Raises FileNotFoundError, or ValueError for
    another format or tokens of another tokenizer."""

    def __init__(self, folder: str | Path, tokenizer: PyramidTokenizer | None = None) -> None:
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise FileNotFoundError(f"TokenDataset: expected a folder of tokens, found no {folder / 'index.json'}")
        index = json.loads((folder / "index.json").read_text(encoding="utf8"))
        found = (index.get("format"), index.get("version"))
        if found != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"TokenDataset: {folder}: expected {FORMAT}, version {FORMAT_VERSION}, got {found}")
        if tokenizer is not None and (wanted := tokenizer_hash(tokenizer)) != index["tokenizer"]:
            raise ValueError(
                f"TokenDataset: {folder}: expected tokens of the tokenizer {wanted}, got those of {index['tokenizer']}"
            )
        self.folder, self.num_frames = folder, index["num_frames"]
        self.height, self.width = index["height"], index["width"]
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            raise ValueError(f"TokenDataset: {folder}: expected shards of tokens, found none")
        parts = [load_file(shard) for shard in shards]
        self.columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if "task" in self.columns:  # numbered as this folder lists them
            unknown = [task for task in index["hints"] if task not in hinted()]
            if unknown:
                raise ValueError(f"TokenDataset: {folder}: expected hints of {', '.join(hinted())}, got {unknown}")
            numbers = torch.tensor([hinted().index(task) for task in index["hints"]])
            self.columns["task"] = numbers[self.columns["task"].long()]
        self.said: list[dict[str, Any]] = []
        for shard in shards:
            lines = shard.with_suffix(".jsonl").read_text(encoding="utf8").splitlines()
            self.said += [json.loads(line) for line in lines]
        found_clips = (len(self.columns["ids"]), len(self.said))
        if found_clips != (index["clips"], index["clips"]):
            raise ValueError(
                f"TokenDataset: {folder}: expected {index['clips']} clips and as many lines, got {found_clips[0]} and "
                f"{found_clips[1]}; a run that was stopped goes on with --resume"
            )

    def __len__(self) -> int:
        return len(self.said)

    def __getitem__(self, index: int) -> dict:
        said = self.said[index]
        caption = said.get("caption", "")
        texts = {"caption": caption, "paraphrase": said.get("paraphrase", caption), "label": said.get("label", "")}
        texts["questions"] = said.get("questions", [])
        tensors = {name: column[index] for name, column in self.columns.items() if name != "task"}
        task = {"task": int(self.columns["task"][index])} if "task" in self.columns else {}
        return tensors | texts | task

    def texts(self) -> list[str]:
        """All that is said of the clips: captions, paraphrases, class names, questions and answers."""
        found = [text for said in self.said for text in said.values() if isinstance(text, str)]
        return found + [text for said in self.said for pair in said.get("questions", []) for text in pair]


def unpack(batch: dict, tokenizer: PyramidTokenizer) -> tuple[TokenPyramid, Condition | None]:
    """A batch of `TokenDataset`: the tokens of its clips, and what their hints give; None where they have none or are
    of different tasks."""
    c = tokenizer.config
    pyramids = tokenizer.pyramids(c.num_frames)
    shape = {"num_frames": c.num_frames, "height": c.height, "width": c.width}
    tokens = TokenPyramid.unflatten(batch["ids"].long(), pyramids, **shape)
    if "hint" not in batch or len(set(batch["task"].tolist())) > 1:
        return tokens, None
    hint = TokenPyramid.unflatten(batch["hint"].long(), pyramids, **shape)
    grids = [tokenizer.latent_grid(c.height, c.width, first=index == 0) for index in range(len(pyramids))]
    cells = batch["share"].float().div(255).split([t * h * w for t, h, w in grids], dim=1)
    share = tuple(part.unflatten(1, grid) for part, grid in zip(cells, grids, strict=True))
    task, exact = hinted()[int(batch["task"][0])], 0
    while TASKS[task].replace is None and exact < len(share) and bool((share[exact] == 1).all()):
        exact += 1
    known = 1 + (exact - 1) * c.chunk_frames
    return tokens, Condition(task, tokens.first(known, exact) if exact else None, None, hint, share)
