"""`ClipData`: any pair of clip data sets as a LightningDataModule. The only file here that needs Lightning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from pyramid.data.folder import FolderDataset
from pyramid.data.video import VideoWarning


def collate_clips(items: list[dict]) -> dict:
    """A batch of items: tensors are stacked, numbers become a tensor, all else (captions, paths) a list.

    `video` (3, T, H, W) becomes (B, 3, T, H, W). A field with None in it is a list.

    Raises:
        ValueError: items with different fields, or tensors of different shapes: the field and the shapes.
    """
    fields = items[0].keys()
    for item in items:
        if item.keys() != fields:
            raise ValueError(f"collate_clips: expected the fields {sorted(fields)} in each item, got {sorted(item)}")
    return {name: _batch(name, [item[name] for item in items]) for name in fields}


def _batch(name: str, values: list) -> Tensor | list:
    if all(isinstance(value, Tensor) for value in values):
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise ValueError(f"collate_clips: expected one shape of {name!r} in a batch, got {sorted(shapes)}")
        return torch.stack(values)
    if all(isinstance(value, bool | int | float) for value in values):
        return torch.tensor(values)
    return values


class EpochSampler(Sampler[int]):
    """Indices in an order that depends on (seed, epoch) alone; tells the data set the epoch (`set_epoch`).

    Lightning calls `set_epoch` before each epoch; without Lightning each pass moves one epoch on.
    """

    def __init__(self, dataset: Dataset, seed: int, shuffle: bool, epoch: int = 0):
        self.dataset, self.seed, self.shuffle, self.epoch = dataset, seed, shuffle, epoch

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # map-style sets have a length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        if not self.shuffle:
            return iter(range(len(self)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return iter(torch.randperm(len(self), generator=generator).tolist())


class ClipData(lightning.LightningDataModule):
    """Loaders over a training and a validation set whose items are dicts with `video` and `caption`.

    Batches are what `collate_clips` makes. Training is shuffled by (seed, epoch) and drops an incomplete last batch
    where there is a complete one; validation is in order and keeps it. Lightning shares the indices among ranks.

    Args:
        train, val: map-style or iterable data sets; `val` may be None.
        batch_size: clips a batch, on each rank.
        num_workers: processes that decode; they live as long as the loader.
        seed: of the order.

    Raises:
        ValueError: bad batch_size or num_workers.
    """

    def __init__(
        self, train: Dataset, val: Dataset | None = None, batch_size: int = 8, num_workers: int = 0, seed: int = 0
    ):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"ClipData: batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"ClipData: num_workers must be 0 or more, got {num_workers}")
        self.train, self.val = train, val
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, training=True)

    def val_dataloader(self) -> DataLoader | list:
        return [] if self.val is None else self._loader(self.val, training=False)

    def teardown(self, stage: str) -> None:
        """Reports broken clips, once, at the end: a `VideoWarning` for each data set that has any."""
        for dataset in (self.train, self.val):
            if isinstance(dataset, FolderDataset) and dataset.num_broken:
                rank_zero_warn(dataset.summary(), category=VideoWarning)

    def _loader(self, dataset: Dataset, training: bool) -> DataLoader:
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "collate_fn": collate_clips,
            "generator": torch.Generator().manual_seed(self.seed),
        }
        if isinstance(dataset, IterableDataset):
            return DataLoader(dataset, **options)
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        sampler = EpochSampler(dataset, self.seed, shuffle=training, epoch=epoch)
        return DataLoader(dataset, sampler=sampler, drop_last=training and len(sampler) >= self.batch_size, **options)
