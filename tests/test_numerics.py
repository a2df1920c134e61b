"""The helper that all numeric tests lean on is itself tested."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_no_worse

TRUTH = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


def test_accepts_twice_the_plain_error():
    assert_no_worse(TRUTH + 0.19, TRUTH + 0.1, TRUTH)


def test_rejects_more():
    with pytest.raises(AssertionError, match="off by 0.21"):
        assert_no_worse(TRUTH + 0.21, TRUTH + 0.1, TRUTH)


def test_rejects_nan_where_the_truth_has_none():
    with pytest.raises(AssertionError, match="off by nan"):
        assert_no_worse(TRUTH * torch.nan, TRUTH + 0.1, TRUTH)


def test_rejects_another_shape():
    with pytest.raises(AssertionError, match="shape"):
        assert_no_worse(TRUTH[:2], TRUTH, TRUTH)
