"""The decoder under a `PyramidLM`: a small random Llama, or any transformers causal LM, with interval attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lm.attention import register
from lm.conditions import READING, TASKS
from lm.decoding import Decoding


@dataclass(frozen=True)
class LMConfig:
    """`backbone`: a transformers causal LM by folder or hub id, or None for a random Llama of `dim`, `num_layers`,
    `num_heads`, `mlp` with a text tokenizer of `text_size` ids learned from the captions. `max_text`: text tokens of a
    prompt or caption, longer ones are cut; `caption_detail`: levels that captions read by default, all where there are
    fewer. `tasks`: what it can be asked for, a token each; `memory`: levels of every chunk that later blocks see as
    tokens, all by default (layout.py); `history`: latent frames of the chunk before that a block sees (context.py).
    `copies`: whether a token sees the code that would leave its place as it was (context.py). `lora`: rank of the
    adapters (LoRA, 2106.09685) that are trained in place of a pretrained backbone, 0 for none. `decoding`: how it
    writes unless told otherwise, by task, "" for all others. `familiar`: how much clips like those it was trained on
    surprise it at most, nats a token of `caption_detail` levels (`PyramidLM.surprise`). Raises ValueError for a number
    below 1, a task that there is not, or decoding of a task that is not among `tasks`."""

    backbone: str | None = None
    dim: int = 192
    num_layers: int = 6
    num_heads: int = 4
    mlp: int = 512
    text_size: int = 512
    max_text: int = 48
    caption_detail: int = 2
    tasks: tuple[str, ...] = field(default_factory=lambda: (*TASKS, *READING))
    memory: int | None = None
    history: int = 1
    copies: bool = True
    lora: int = 0
    decoding: dict[str, Decoding] = field(default_factory=dict)
    familiar: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_text", "caption_detail", "memory", "history"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.lora < 0 or (self.lora and not self.backbone):
            raise ValueError(
                f"lora: expected 0, or a rank and a pretrained backbone, got {self.lora} and {self.backbone}"
            )
        unknown = [name for name in self.tasks if name not in (*TASKS, *READING)]
        if unknown or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks: expected some of {', '.join((*TASKS, *READING))}, each once, got {self.tasks}")
        if strange := sorted(self.decoding.keys() - {"", *self.tasks}):
            raise ValueError(f"decoding: expected some of the model's tasks, got {', '.join(strange)}")


def make_backbone(config: LMConfig, text_size: int) -> nn.Module:
    """The causal LM that a config describes, with interval attention."""
    if config.backbone:
        backbone = load_backbone(config.backbone)
        return add_adapters(backbone, config.lora) if config.lora else backbone
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


# A peft model holds the backbone it has put its adapters in. It is kept beside the backbone, not inside it, to write
# and read a folder in peft's own format.
_PEFT = "_peft_model"


def add_adapters(backbone: nn.Module, rank: int) -> nn.Module:
    """The same model with low-rank adapters in every linear layer but the head, which alone are trained."""
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return _beside(peft.get_peft_model(backbone, config))


def load_adapters(backbone: nn.Module, folder: str | Path) -> nn.Module:
    """The same model with the adapters of a peft folder, to be trained on."""
    import peft

    return _beside(peft.PeftModel.from_pretrained(backbone, folder, is_trainable=True))


def save_adapters(backbone: nn.Module, folder: str | Path) -> None:
    """Write the adapters as a peft folder: `peft.PeftModel.from_pretrained(base, folder)` reads it."""
    getattr(backbone, _PEFT).save_pretrained(folder)


def merge_adapters(backbone: nn.Module) -> nn.Module:
    """A model of the same kind with the adapters added to its weights, and no adapters."""
    return getattr(backbone, _PEFT).merge_and_unload()


def _beside(model: nn.Module) -> nn.Module:
    backbone = model.base_model.model
    object.__setattr__(backbone, _PEFT, model)
    return backbone
