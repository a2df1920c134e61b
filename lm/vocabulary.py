"""The ids of what stands before and after the pyramid: text and special tokens, in one space.

[0, num_text)            the text tokenizer's ids
[num_text, num_text+S)   special tokens: pad, one for each task, one for each detail

Codes are not among them: a level's ids run from 0, and the layout says which positions are of which level. Each level
has embeddings and a head of its own (heads.py), so that no id outside a level's codebook can be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TASKS = ("generate", "caption")


@dataclass(frozen=True)
class Vocabulary:
    """`num_text`: ids of the text tokenizer; `num_levels`: of the pyramid."""

    num_text: int
    num_levels: int

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


def train_text_tokenizer(sentences: Sequence[str], size: int):
    """A byte-level BPE tokenizer (transformers) learned from `sentences`, of at most `size` ids, the first one the end
    of text: any text encodes, and decodes back exactly.

    Raises ValueError for a size below the 256 bytes and the end of text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = "</s>"
    if size < len(alphabet) + 1:
        raise ValueError(f"train_text_tokenizer: size must be at least {len(alphabet) + 1}, got {size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=[end], show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, clean_up_tokenization_spaces=False)
