"""The cache with room: what `DynamicCache` holds, with fewer copies."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from lm.kv_cache import ROOM, roomy_cache


def test_it_holds_what_a_dynamic_cache_holds():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = roomy_cache(), DynamicCache()

    def both(call):
        return [call(cache) for cache in (ours, theirs)]

    def add(count, rows=3):
        keys, values = (torch.randn(rows, 2, count, size, generator=generator) for size in (4, 6))
        for layer in range(2):
            found, wanted = both(lambda cache: cache.update(keys, values, layer))  # noqa: B023
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert ours.get_seq_length() == theirs.get_seq_length()

    add(5)
    add(2)
    both(lambda cache: cache.crop(-3))
    add(1)
    add(ROOM)  # a larger buffer
    both(lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])))
    add(2)
    both(lambda cache: cache.batch_select_indices(torch.tensor([1, 2])))
    add(3, rows=2)
    both(lambda cache: cache.crop(-4))
    add(1, rows=2)
    both(lambda cache: cache.reset())
    add(2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_later_tokens_cost_no_copy_of_earlier_ones(dtype):
    cache = roomy_cache()
    first, _ = cache.update(torch.ones(1, 1, 4, 8, dtype=dtype), torch.ones(1, 1, 4, 8, dtype=dtype), 0)
    more, values = cache.update(torch.ones(1, 1, 1, 8, dtype=dtype), torch.ones(1, 1, 1, 8, dtype=dtype), 0)
    assert more.data_ptr() == first.data_ptr() and values.dtype == dtype
