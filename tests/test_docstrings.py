"""The examples in docstrings say what is so."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHOWN = [
    path.relative_to(ROOT)
    for package in ("pyramid", "lm", "tasks")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf8")
]


@pytest.mark.parametrize("path", SHOWN, ids=str)
def test_examples(path):
    found = doctest.testmod(importlib.import_module(".".join(path.with_suffix("").parts)))
    assert found.attempted and not found.failed
