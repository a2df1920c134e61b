"""One id space for all that a sequence holds: text, special tokens, words of the coarse levels, codes of the fine ones.

[0, num_text)            the text tokenizer's ids
[num_text, num_text+S)   special tokens: pad, one for each task, one for each detail
then one range a level   its code ids; levels of words share one range, for a word means the same everywhere
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

TASKS = ("generate", "caption")


@dataclass(frozen=True)
class Vocabulary:
    """`num_text`: ids of the text tokenizer; `codebooks`: kind ("words", "bits", ...) of each level, coarse first;
    `codebook_sizes`: number of codes of each level."""

    num_text: int
    codebooks: tuple[str, ...]
    codebook_sizes: tuple[int, ...]

    @property
    def num_levels(self) -> int:
        return len(self.codebooks)

    @property
    def pad(self) -> int:
        return self.num_text

    def task(self, name: str) -> int:
        if name not in TASKS:
            raise ValueError(f"Vocabulary.task: expected one of {TASKS}, got {name!r}")
        return self.num_text + 1 + TASKS.index(name)

    def detail(self, detail: int) -> int:
        """The token that says how many levels follow, 1 to num_levels."""
        if not 1 <= detail <= self.num_levels:
            raise ValueError(f"Vocabulary.detail: expected 1 to {self.num_levels}, got {detail}")
        return self.num_text + 1 + len(TASKS) + detail - 1

    @property
    def num_special(self) -> int:
        return 1 + len(TASKS) + self.num_levels

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First id of each level's range."""
        offsets: list[int] = []
        start = self.num_text + self.num_special
        words: int | None = None
        for kind, size in zip(self.codebooks, self.codebook_sizes, strict=True):
            if kind == "words" and words is not None:
                offsets.append(words)
                continue
            offsets.append(start)
            words = start if kind == "words" else words
            start += size
        return tuple(offsets)

    @property
    def size(self) -> int:
        """Ids in all."""
        return max(o + s for o, s in zip(self.offsets, self.codebook_sizes, strict=True))

    def to_ids(self, level: int, codes: Tensor) -> Tensor:
        """Code ids of a level (from 0) -> ids of the one space."""
        return codes + self.offsets[level]

    def to_codes(self, level: int, ids: Tensor) -> Tensor:
        """The inverse of `to_ids`. Raises ValueError for an id outside the level's range."""
        codes = ids - self.offsets[level]
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.codebook_sizes[level]):
            raise ValueError(
                f"Vocabulary.to_codes: level {level + 1} has ids from {self.offsets[level]} to "
                f"{self.offsets[level] + self.codebook_sizes[level] - 1}, got {int(ids.min())} to {int(ids.max())}"
            )
        return codes


def train_text_tokenizer(sentences: Sequence[str], size: int):
    """A byte-level BPE tokenizer (transformers) learned from `sentences`, of at most `size` ids, the first one the end
    of text: any text encodes, and decodes back exactly."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", clean_up_tokenization_spaces=False)
