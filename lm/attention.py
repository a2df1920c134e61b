"""Interval attention as an attention function of transformers.

Every query sees the keys [a, b) and [c, d): enough for causal text, for blocks that see themselves in both directions,
for the masked copy of a block beside the clean past, and for padding on the left. The intervals travel through the
backbone's forward as the keyword `intervals` (B, S, 4), int64, in positions of the whole key sequence, cache included.

A backbone that asks for more than softmax attention (a cap on the scores, sinks, biases, a window shorter than the
sequence) is refused: without them it would be another model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from pyramid import ops

NAME = "pyramid_interval"
# Keywords by which transformers' models ask for another attention.
_REFUSED = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")


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
    asked = [name for name in _REFUSED if kwargs.get(name) is not None]
    if asked:
        raise ValueError(f"interval attention: expected a backbone of plain attention, got one with {', '.join(asked)}")
    if dropout:
        out = _attend_dropped(query, key, value, intervals, scaling, dropout)
    else:
        out = ops.interval_attention(query, key, value, intervals, scale=scaling)
    return out.transpose(1, 2), None


def _attend_dropped(
    query: Tensor, key: Tensor, value: Tensor, intervals: Tensor, scale: float | None, dropout: float
) -> Tensor:
    """The same with a share of the attention weights dropped, which the op does not offer: (B, H, S, D)."""
    a, b, c, d = intervals[:, None, :, :, None].unbind(3)  # each (B, 1, S, 1)
    at = torch.arange(key.shape[2], device=key.device)
    seen = (a <= at) & (at < b) | (c <= at) & (at < d)
    some = seen.any(-1, keepdim=True)
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen | ~some, dropout_p=dropout, scale=scale, enable_gqa=True
    )
    return out * some  # pads see nothing


def _mask(*, kv_length: int, local_size: int | None = None, **kwargs: Any) -> None:
    """The backbone needs no mask; sliding windows and chunks, which would be one, must not exclude anything."""
    if local_size is not None and kv_length > local_size:
        raise ValueError(
            f"interval attention: the backbone sees no further than {local_size} tokens, expected as many as the "
            f"sequence has, {kv_length}"
        )


def register() -> str:
    """Make the name known to transformers, and return it for `attn_implementation`."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    return NAME
