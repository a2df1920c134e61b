"""`ClipData`: any pair of clip data sets as a LightningDataModule. The only file here that needs Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


class EpochBatches(Sampler[list[int]]):
    """Lists of indices: the batches of one epoch, then those of the next. They depend on (seed, epoch) alone; the data
    set is told the epoch (`set_epoch`).

    `position`: asked at the start of each pass how many batches have been had so far, over all epochs; the pass goes on
    there, so that a run which is resumed sees what it would have seen. Without it each pass is the next epoch.

    `rank` of `num_ranks` gets its share of each joint batch of `batch_size * num_ranks` indices: every num_ranks-th.
    With `drop_last` an incomplete joint batch is left out where there is a complete one; without, ranks whose share is
    short are given indices from the start.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        shuffle: bool,
        *,
        drop_last: bool = False,
        rank: int = 0,
        num_ranks: int = 1,
        position: Callable[[], int] | None = None,
    ):
        self.dataset, self.batch_size, self.seed, self.shuffle = dataset, batch_size, seed, shuffle
        self.rank, self.num_ranks, self._position, self._epoch = rank, num_ranks, position, 0
        self._joint = batch_size * num_ranks
        self._size = len(dataset)  # type: ignore[arg-type]  # map-style sets have a length
        self._drop_last = drop_last and self._size >= self._joint

    def __len__(self) -> int:
        return self._size // self._joint if self._drop_last else -(-self._size // self._joint)

    def __iter__(self) -> Iterator[list[int]]:
        position = self._epoch * len(self) if self._position is None else self._position()
        epoch, done = divmod(position, len(self))
        self._epoch = epoch + 1
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        order = list(range(self._size))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(self._size, generator=generator).tolist()
        order += order[: -self._size % self.num_ranks]
        for batch in range(done, len(self)):
            yield order[batch * self._joint : (batch + 1) * self._joint][self.rank :: self.num_ranks]


class ClipData(lightning.LightningDataModule):
    """Loaders over a training and a validation set whose items are dicts with `video` and `caption`.

    Batches are what `collate_clips` makes. Training is shuffled by (seed, epoch) and drops an incomplete last batch
    where there is a complete one; validation is in order and keeps it. Ranks share them (`EpochBatches`). A module in
    training that counts its steps in `step` goes on at its step.

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
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "collate_fn": collate_clips,
            "generator": torch.Generator().manual_seed(self.seed),
        }
        if isinstance(dataset, IterableDataset):
            return DataLoader(dataset, batch_size=self.batch_size, **options)
        trainer = self.trainer
        module = trainer.lightning_module if trainer is not None else None
        counts = training and hasattr(module, "step")
        batches = EpochBatches(
            dataset,
            self.batch_size,
            self.seed,
            shuffle=training,
            drop_last=training,
            rank=trainer.global_rank if trainer is not None else 0,
            num_ranks=trainer.world_size if trainer is not None else 1,
            position=(lambda: module.step) if counts else (None if training else lambda: 0),
        )
        return DataLoader(dataset, batch_sampler=batches, **options)
