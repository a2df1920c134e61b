"""Many clips in batches, several batches side by side: reading a file, a tokenizer and a language model in one thread,
and as many threads as fill the cores.

The operations of a small model are too short to be shared out among cores one by one; whole batches are not, and their
reading, which no operation waits for, needs no threads of its own (docs/experiments.md)."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_WORKERS = 8  # Python itself runs in one of them at a time


def side_by_side(
    items: Iterable[Item], work: Callable[[list[Item]], Result], size: int
) -> Iterator[tuple[list[Item], Result]]:
    """(batch, work(batch)) in order, for batches of `size` items, or fewer where all cores would not have one. As many
    batches are worked on at a time as torch has threads, 8 at most, each with its share of these; `items` are taken one
    batch ahead. What `work` raises is raised in its place."""
    import torch

    cores = torch.get_num_threads()
    workers = min(MOST_WORKERS, cores)
    if isinstance(items, Sized):
        size = max(1, min(size, -(-len(items) // workers)))
    batches = grouped(items, size)
    first = list(itertools.islice(batches, workers))
    if first:
        with torch_threads(max(1, cores // len(first))):
            yield from ahead(itertools.chain(first, batches), work, len(first))


def grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """So many at a time, the last ones as many as are left."""
    found = iter(items)
    while group := list(itertools.islice(found, size)):
        yield group


def ahead(items: Iterable[Item], work: Callable[[Item], Result], workers: int) -> Iterator[tuple[Item, Result]]:
    """(item, work(item)) in order, worked on by threads; one item more than there are workers is taken at most before
    its turn."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                while waiting and (len(waiting) > workers or waiting[0][1].done()):
                    item, future = waiting.popleft()
                    yield item, future.result()
            for item, future in waiting:
                yield item, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Threads inside an operation of torch, in this thread and in those that begin meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
