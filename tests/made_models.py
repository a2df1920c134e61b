"""Small random models of each kind, saved to disk as transformers saves them, with tokenizers that mark words as the
real ones do."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

TEXT = ["a small red star moves left", "a large blue circle rests", "two green stars on a dotted background"] * 4


def make_bert(folder: Path) -> Path:
    """An encoder; WordPiece: `##` continues a word."""
    names = ["[PAD]", "[UNK]", "red", "##ish", "star", "a", "moves", "Left", "x1", "blue", "stars", "small", "left"]
    vocabulary = {name: index for index, name in enumerate(names)}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    _save_tokenizer(inner, folder, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(names), max_position_embeddings=32, **size)).save_pretrained(folder)
    return folder


def make_llama(folder: Path) -> Path:
    """A causal LM; byte-level BPE: `Ġ` begins a word. It has no padding token, as most have none."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>"], initial_alphabet=alphabet)
    )
    _save_tokenizer(inner, folder, eos_token="</s>")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = LlamaConfig(vocab_size=400, num_key_value_heads=1, max_position_embeddings=128, eos_token_id=0, **size)
    LlamaModel(config).save_pretrained(folder)
    return folder


def make_t5(folder: Path) -> Path:
    """An encoder with a decoder beside it; SentencePiece's `▁` begins a word."""
    names = ["<pad>", "</s>", "<unk>", "▁red", "▁star", "▁a", "▁moves", "ish", "▁Left", "▁blue"]
    inner = Tokenizer(models.Unigram([(name, -1.0 - index) for index, name in enumerate(names)], unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    _save_tokenizer(inner, folder, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    size = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5Model(T5Config(vocab_size=len(names), decoder_start_token_id=0, **size)).save_pretrained(folder)
    return folder


def make_clip(folder: Path, layers: int = 2) -> Path:
    """CLIP with 16x16 pixels in patches of 4; its BPE ends a word with `</w>`."""
    inner = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|startoftext|>", "<|endoftext|>"], end_of_word_suffix="</w>"
    )
    inner.train_from_iterator([*TEXT, "a photo of a"], trainer)
    from tokenizers.processors import TemplateProcessing

    special = [("<|startoftext|>", 0), ("<|endoftext|>", 1)]
    inner.post_processor = TemplateProcessing(single="<|startoftext|> $A <|endoftext|>", special_tokens=special)
    _save_tokenizer(inner, folder, eos_token="<|endoftext|>", bos_token="<|startoftext|>", pad_token="<|endoftext|>")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {"vocab_size": inner.get_vocab_size(), "max_position_embeddings": 24, **ids, **size}
    vision = {"image_size": 16, "patch_size": 4, **size}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    for parameter in model.parameters():  # its own initial values are so small that all images look alike
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return folder


def _save_tokenizer(inner: Tokenizer, folder: Path, **names: str) -> None:
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
