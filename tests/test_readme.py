"""The Python blocks of README.md run, in order, in one namespace: what a reader copies works."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_python_blocks_run(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf8")
    blocks = [(text[: match.start()].count("\n") + 1, match[1]) for match in BLOCK.finditer(text)]
    if not blocks:
        pytest.skip("README.md has no python block yet")
    if not any((ROOT / "tasks" / "shipped").rglob("model.safetensors")):
        pytest.skip("the shipped model is not in the tree")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for line, block in blocks:
        # Blank lines above keep the line numbers of a traceback those of the README.
        exec(compile("\n" * line + block, os.fspath(ROOT / "README.md"), "exec"), namespace)


def test_the_two_commands_are_named():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    assert "make quickstart" in text
    assert "make test" in text
