"""Batches side by side: in order, few taken before their turn, cores shared out."""

from __future__ import annotations

import threading

import pytest
import torch

from tasks.batches import ahead, grouped, side_by_side, torch_threads


@pytest.fixture
def four_threads():
    with torch_threads(4):
        yield


def test_work_is_done_ahead_in_order_and_not_far():
    taken, done, gate = [], [], threading.Event()

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    def work(item):
        if item == 0:
            gate.wait(10)
        done.append(item)
        return -item

    results = ahead(items(), work, workers=2)
    threading.Timer(0.3, gate.set).start()
    assert next(results) == (0, 0)
    assert 1 in done[:2] and len(taken) <= 4  # another worker went on while the first item took its time
    assert list(results) == [(item, -item) for item in range(1, 50)]


def test_what_work_raises_is_raised_in_its_place_and_nothing_is_begun_after():
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise KeyError("three")
        return item

    results = ahead(range(1000), work, workers=2)
    assert [next(results)[1] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="three"):
        list(results)
    assert len(begun) < 10


@pytest.mark.parametrize(
    ("count", "size", "sizes", "each"),
    [(64, 16, [16] * 4, 1), (70, 16, [16] * 4 + [6], 1), (6, 16, [2, 2, 2], 1), (2, 16, [1, 1], 2), (1, 16, [1], 4)],
)
def test_a_few_clips_are_shared_out_too(four_threads, count, size, sizes, each):
    """All cores have a batch where there are so many clips, and one clip has all threads."""
    inside = []

    def work(batch):
        inside.append(torch.get_num_threads())
        return sum(batch)

    found = list(side_by_side(list(range(count)), work, size))
    assert [len(batch) for batch, _ in found] == sizes
    assert [item for batch, _ in found for item in batch] == list(range(count))
    assert all(result == sum(batch) for batch, result in found)
    assert inside == [each] * len(sizes) and torch.get_num_threads() == 4


def test_items_of_unknown_number_come_in_whole_batches(four_threads):
    found = list(side_by_side(iter(range(10)), len, 4))
    assert [result for _, result in found] == [4, 4, 2]
    assert list(side_by_side(iter([]), len, 4)) == [] and list(grouped([], 3)) == []


def test_threads_come_back_after_a_fault(four_threads):
    def work(batch):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(side_by_side(range(100), work, 4))
    assert torch.get_num_threads() == 4
