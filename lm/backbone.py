"""The decoder under a `PyramidLM`: a small random Llama, or any transformers causal LM, with interval attention."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lm.attention import register


@dataclass(frozen=True)
class LMConfig:
    """`backbone`: a transformers causal LM by folder or hub id, or None for a random Llama of `dim`, `num_layers`,
    `num_heads`, `mlp` with a text tokenizer of `text_size` ids learned from the captions. `max_text`: text tokens of a
    prompt or caption, longer ones are cut; `caption_detail`: levels that captions read by default, all where there are
    fewer. Raises ValueError for a `max_text` or `caption_detail` below 1."""

    backbone: str | None = None
    dim: int = 192
    num_layers: int = 6
    num_heads: int = 4
    mlp: int = 512
    text_size: int = 512
    max_text: int = 48
    caption_detail: int = 2

    def __post_init__(self) -> None:
        for name in ("max_text", "caption_detail"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def make_backbone(config: LMConfig, text_size: int) -> nn.Module:
    """The causal LM that a config describes, with interval attention."""
    if config.backbone:
        return load_backbone(config.backbone)
    llama = LlamaConfig(
        vocab_size=text_size,
        hidden_size=config.dim,
        intermediate_size=config.mlp,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=1 << 16,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    llama._attn_implementation = register()
    return LlamaForCausalLM(llama)


def load_backbone(name: str | Path) -> nn.Module:
    """A pretrained causal LM by folder or hub id, with interval attention. Raises ValueError for one whose attention
    cannot be replaced."""
    backbone = AutoModelForCausalLM.from_pretrained(name, attn_implementation=register(), dtype=torch.float32)
    if not backbone.is_backend_compatible():
        raise ValueError(
            f"PyramidLM: backbone {name}: expected one whose attention can be replaced, got {type(backbone).__name__}"
        )
    return backbone
