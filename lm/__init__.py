"""The language model over pyramids. Read model.py first, then layout.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.model import LMConfig, PyramidLM

__all__ = ["LMConfig", "PyramidLM"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lm' has no attribute {name!r}")
    import lm.model

    return getattr(lm.model, name)
