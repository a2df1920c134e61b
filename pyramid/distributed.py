"""What many ranks have to agree on in training, as functions that are the identity on one rank.

A batch over W ranks is the joint batch dealt out like cards: rank r has its rows r, r + W, r + 2 W, ... Every gathering
here puts them back in that order, so that what is computed from the joint batch is the same on every rank and equal to
what one process computes from it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _on() -> bool:
    return dist.is_available() and dist.is_initialized()


def num_ranks() -> int:
    return dist.get_world_size() if _on() else 1


def rank() -> int:
    return dist.get_rank() if _on() else 0


def all_ranks() -> dist.ProcessGroup | None:
    """The group of all ranks; None where there is one."""
    return dist.group.WORLD if num_ranks() > 1 else None


def my_rows(joint: Tensor) -> Tensor:
    """This rank's rows of a tensor of the joint batch, (W B, ...) -> (B, ...)."""
    return joint[rank() :: num_ranks()]


def gather_rows(rows: Tensor) -> Tensor:
    """(B, ...) of every rank -> (W B, ...), in the order of the joint batch, without gradient. All B are equal."""
    if num_ranks() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(num_ranks())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over ranks, without gradient."""
    if num_ranks() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / num_ranks()


def gather_objects(value: Any) -> list[Any]:
    """A small picklable value of every rank, by rank."""
    if num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """The value that the first rank has."""
    if num_ranks() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
