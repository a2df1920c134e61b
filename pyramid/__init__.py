"""Video as a semantic pyramid of tokens: words on top, bits below.

    from pyramid import PyramidTokenizer
    from pyramid.data.video import read_clip, write_video

The public names below are imported when they are first asked for, so that the command line starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyramid.levels import Level, Pyramid
    from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig
    from pyramid.tokens import TokenPyramid
    from pyramid.words import WordTable

__all__ = ["Level", "Pyramid", "PyramidTokenizer", "TokenPyramid", "TokenizerConfig", "WordTable"]

_HOMES = {
    "Level": "levels",
    "Pyramid": "levels",
    "PyramidTokenizer": "tokenizer",
    "TokenPyramid": "tokens",
    "TokenizerConfig": "tokenizer",
    "WordTable": "words",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pyramid' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pyramid.{_HOMES[name]}"), name)
