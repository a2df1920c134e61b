"""`TextEncoder`: sentences and words as vectors, by any text model of transformers, local folder or hub id.

What stands for a text depends on what the model was made for, and is told by its config:

- *encoder* (BERT and kin; the encoder half of T5 and kin): the mean of the last hidden states over the text's tokens,
  which is the sentence-transformers convention (1908.10084);
- *decoder* (causal language models): the last hidden state of the last token of the prompt
  `This sentence : "TEXT" means in one word:"` (PromptEOL, 2307.16645): the model's own next-word state;
- *clip* (text towers with an image tower beside them): the projected embedding that images are compared with.

`space="input"` takes the mean of the model's input embeddings instead, whatever the kind: SPAE's choice (2306.17842).
All vectors come with unit length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["encoder", "decoder", "clip"]
_IN_ONE_WORD = 'This sentence : "{}" means in one word:"'


class TextEncoder:
    """`model`: a local folder or a hub id; `name` is its last part, `kind` as above, `dim` numbers a vector has.

    Raises FileNotFoundError for a model that is neither a folder nor within reach, ValueError for one that is not of
    text, and for an unknown `space`.
    """

    def __init__(
        self, model: str | Path, *, space: Literal["sentence", "input"] = "sentence", device: torch.device | str = "cpu"
    ) -> None:
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        if space not in ("sentence", "input"):
            raise ValueError(f"TextEncoder: space must be sentence or input, got {space!r}")
        self.name, self.space, self.device = Path(model).name, space, torch.device(device)
        try:
            config = AutoConfig.from_pretrained(model)
            self.kind = kind_of(config)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
            net: Any = AutoModel.from_pretrained(model)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise FileNotFoundError(
                f"TextEncoder: {model}: expected the folder or hub id of a transformers text model, got {reason}"
            ) from None
        if config.is_encoder_decoder:
            net = net.get_encoder()
        self.net = net.to(self.device).eval().requires_grad_(False)
        self.tokenizer.padding_side = "right"  # so that positions count from the text's first token
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token is None:
            raise ValueError(f"TextEncoder: {model}: expected a tokenizer with a padding or end token, got neither")
        self.max_tokens = _most_tokens(config, self.tokenizer)
        self.dim = self(["a"]).shape[1]

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """(N, dim) float32 of unit length, on the CPU. A text that is too long is cut; an empty one is no error."""
        rows = [self._batch(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        if not rows:
            return torch.empty(0, self.dim)
        return torch.nn.functional.normalize(torch.cat(rows).float().cpu(), dim=-1)

    def _batch(self, texts: Sequence[str]) -> Tensor:
        if self.space == "input":
            batch = self._tokens(texts, add_special_tokens=False)
            table = self._input_embeddings()
            return _mean(table(batch["input_ids"]), batch["attention_mask"])
        if self.kind == "clip":
            features = self.net.get_text_features(**self._tokens(texts))
            return features if isinstance(features, Tensor) else features.pooler_output
        if self.kind == "decoder":
            batch = self._tokens([_IN_ONE_WORD.format(text) for text in texts])
            hidden = self.net(**batch).last_hidden_state
            last = batch["attention_mask"].sum(dim=1) - 1
            return hidden[torch.arange(len(texts), device=hidden.device), last]
        batch = self._tokens(texts)
        return _mean(self.net(**batch).last_hidden_state, batch["attention_mask"])

    def _tokens(self, texts: Sequence[str], **options: Any) -> Any:
        kept = {"input_ids", "attention_mask"}
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt", **options
        )
        if batch["input_ids"].shape[1] == 0:  # nothing but empty texts
            ids = torch.full((len(texts), 1), self.tokenizer.pad_token_id)
            batch = {"input_ids": ids, "attention_mask": torch.zeros_like(ids)}
        return {name: value.to(self.device) for name, value in batch.items() if name in kept}

    def _input_embeddings(self) -> torch.nn.Module:
        return getattr(self.net, "text_model", self.net).get_input_embeddings()

    def whole_words(self) -> list[str]:
        """The lower-case alphabetic words of two letters or more that the model's vocabulary holds whole, each once, in
        the order of their ids. A word counts as whole where the vocabulary marks a word's beginning ("Ġ" of byte-level
        BPE, "▁" of SentencePiece), its end ("</w>" of CLIP) or its continuation ("##" of WordPiece)."""
        tokens = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        names = [token for token, _ in tokens]
        for marked in (
            [name[1:] for name in names if name.startswith("Ġ")],
            [name[1:] for name in names if name.startswith("▁")],
            [name[: -len("</w>")] for name in names if name.endswith("</w>")],
            [name for name in names if not name.startswith("##")],
        ):
            if marked:
                return list(dict.fromkeys(name for name in marked if is_word(name)))
        return []


def is_word(text: str) -> bool:
    """Lower-case letters a to z alone, two or more."""
    return len(text) > 1 and text.isascii() and text.isalpha() and text.islower()


def kind_of(config: Any) -> Kind:
    """Which kind of text model a transformers config describes. Raises ValueError for one without text."""
    from transformers.models.auto import modeling_auto as auto

    if getattr(config, "text_config", None) is not None and getattr(config, "vision_config", None) is not None:
        if getattr(config, "projection_dim", None) is None:
            raise ValueError(f"expected a text model or a CLIP model, got one of type {config.model_type!r}")
        return "clip"
    if not getattr(config, "vocab_size", None):
        raise ValueError(f"expected a model of text, got one of type {config.model_type!r}")
    both_ways = config.is_encoder_decoder or getattr(config, "use_bidirectional_attention", False)
    causal = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "decoder" if causal and not masked and not both_ways else "encoder"


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Over the tokens that are text: (B, S, D), (B, S) -> (B, D); zero where none is."""
    weight = mask[..., None].to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)


def _most_tokens(config: Any, tokenizer: Any) -> int:
    """The longest text that the model takes, in tokens."""
    config = getattr(config, "text_config", None) or config
    positions = getattr(config, "max_position_embeddings", None) or 512
    offset = 2 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0  # their padding's place
    return min(positions - offset, tokenizer.model_max_length, 4096)
