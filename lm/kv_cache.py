"""Keys and values of a sequence that is being written, in buffers with room for more: a token costs its own copy, where
transformers' `DynamicCache` copies all before it again. Tokens are cropped from the end at no cost."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

ROOM = 256  # tokens; a buffer that is full doubles


class _RoomyLayer(DynamicLayer):
    """`keys` and `values` (B, H, S, D) are views of the first S places of the buffers: for inference, as later tokens
    are written over cropped ones."""

    buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """New keys and values (B, H, n, D) behind those that are there; all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[2]
        if self.buffers is None or stop > self.buffers[0].shape[2] or not _begins(self.buffers[0], self.keys):
            self.buffers = (
                _larger(self.keys, key_states, start, max(ROOM, 2 * stop)),
                _larger(self.values, value_states, start, max(ROOM, 2 * stop)),
            )
        keys, values = self.buffers
        keys[:, :, start:stop], values[:, :, start:stop] = key_states, value_states
        self.keys, self.values = keys[:, :, :stop], values[:, :, :stop]
        return self.keys, self.values

    def reset(self) -> None:
        super().reset()
        self.buffers = None


def _begins(buffer: Tensor, keys: Tensor) -> bool:
    """Whether these are its first places: other rows are, after `reorder_cache`, of a tensor of their own."""
    return not keys.numel() or (keys.data_ptr() == buffer.data_ptr() and len(keys) == len(buffer))


def _larger(old: Tensor, like: Tensor, used: int, size: int) -> Tensor:
    new = like.new_empty(*like.shape[:2], size, like.shape[3])
    if used:
        new[:, :, :used] = old
    return new


def roomy_cache() -> Cache:
    """An empty cache for any transformers model; a layer is added at its first update."""
    return Cache(layer_class_to_replicate=_RoomyLayer)
