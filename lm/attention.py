"""Interval attention as an attention function of transformers.

Every query sees the keys [a, b) and [c, d): enough for causal text, for blocks that see themselves in both directions,
for the masked copy of a block beside the clean past, and for padding on the left. The intervals travel through the
backbone's forward as the keyword `intervals` (B, S, 4), int64, in positions of the whole key sequence, cache included.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from pyramid import ops

NAME = "pyramid_interval"


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    intervals: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (B, H, S, D), key and value (B, H_kv, S_kv, D) -> (B, S, H, D)."""
    if intervals is None:
        raise ValueError(
            "interval attention: expected the keyword intervals (B, S, 4) in the model's forward, got none"
        )
    return ops.interval_attention(query, key, value, intervals, scale=scaling).transpose(1, 2), None


def register() -> str:
    """Make the name known to transformers, and return it for `attn_implementation`. The backbone builds no mask."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    return NAME
