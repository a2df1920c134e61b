"""The clips of a language model's training: which tasks they can teach, what is said of them, and batches of one group
when they come as tokens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from lm.conditions import READING, TASKS, hinted
from lm.curriculum import Group, GroupBatches
from lm.decoding import TextWarning
from lm.model import PyramidLM
from lm.token_cache import TokenDataset
from pyramid.data.datamodule import ClipData, collate_clips


def all_but_classes() -> tuple[str, ...]:
    return tuple(name for name in (*TASKS, *READING) if name != "class")


class _Grouped(Dataset):
    """Clips by (index, group): items with the group beside."""

    def __init__(self, clips: TokenDataset) -> None:
        self.clips = clips

    def __getitems__(self, chosen: Sequence[tuple[int, Group]]) -> list[dict]:
        return [self.clips[index] | {"group": group} for index, group in chosen]


class TokenData(ClipData):
    """Loaders over clips that come as tokens: training in groups, validation in order."""

    train: TokenDataset

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None  # that is who asks
        module, hints = self.trainer.lightning_module, self.train.columns.get("task")
        batches = GroupBatches(
            module,
            len(self.train),
            None if hints is None else hints.tolist(),
            self.batch_size,
            self.trainer.global_rank,
        )
        return DataLoader(_Grouped(self.train), batch_sampler=batches, collate_fn=collate_clips)


def texts_of(dataset: Dataset) -> list[str]:
    """Sentences to learn a text tokenizer from: those of the metadata, or of a sample of a procedural world."""
    if isinstance(dataset, TokenDataset):
        return dataset.texts()
    inner: Any = getattr(dataset, "dataset", dataset)  # the captions of a wrapped data set are those of the inner one
    if hasattr(inner, "clips"):
        captions = [clip.caption for clip in inner.clips if clip.caption]
        return captions + [text for clip in inner.clips for pair in clip.questions for text in pair]
    items = inner.describe(range(min(len(inner), 2048)))
    captions = [item[name] for item in items for name in ("caption", "paraphrase")]
    return captions + [text for item in items for pair in item["questions"] for text in pair]


def teachable(dataset: Dataset) -> tuple[str, ...]:
    """The tasks that these clips have what it takes for."""
    if not isinstance(dataset, TokenDataset):  # clips of these have no class names
        clips = getattr(getattr(dataset, "dataset", dataset), "clips", None)
        silent = clips is not None and not any(clip.questions for clip in clips)
        return tuple(name for name in all_but_classes() if not (name == "ask" and silent))
    hints = dataset.columns.get("task")
    there = {hinted()[index] for index in hints.unique().tolist()} if hints is not None else set()
    missing = set(hinted()) - there
    has = {name for said in dataset.said for name, value in said.items() if value}
    missing |= set() if "label" in has else {"class"}
    missing |= {"caption"} - has
    missing |= set() if has & {"questions", "label"} else {"ask"}
    return tuple(name for name in (*TASKS, *READING) if name not in missing)


def warn_of_cut(captions: Sequence[str], lm: PyramidLM, most: int = 4096) -> None:
    """A `TextWarning` where some of the first `most` captions are longer than the model reads and writes."""
    lengths = [len(lm.text_ids(caption)) for caption in captions[:most]]
    cut = sum(length > lm.config.max_text for length in lengths)
    if cut:
        warnings.warn(
            f"train lm: {cut} of {len(lengths)} captions are cut at max_text={lm.config.max_text} tokens, the longest "
            f"has {max(lengths)}",
            TextWarning,
            stacklevel=3,
        )
