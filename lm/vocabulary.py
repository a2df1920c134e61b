"""One id space for all that a sequence holds: text, special tokens, the codes of every level.

[0, num_text)            the text tokenizer's ids
[num_text, num_text+S)   special tokens: pad, one for each task, one for each detail
then one range a level   its code ids, coarse first

`PyramidLM.sequence_ids` writes a sequence in it. Inside the model a code keeps its id within its level, for each level
has embeddings and a head of its own (heads.py): no id outside a level's range can be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """`num_text`: ids of the text tokenizer; `codebook_sizes`: number of codes of each level, coarse first; `tasks`:
    names of what the model can be asked for."""

    num_text: int
    codebook_sizes: tuple[int, ...]
    tasks: tuple[str, ...]

    @property
    def num_levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def pad(self) -> int:
        return self.num_text

    def task(self, name: str) -> int:
        """The token that says what is asked for. Raises ValueError for what the model was not made for."""
        if name not in self.tasks:
            raise ValueError(f"task: this model knows {', '.join(self.tasks)}; got {name!r}")
        return self.num_text + 1 + self.tasks.index(name)

    def detail(self, detail: int) -> int:
        """The token that says how many levels follow, 1 to num_levels."""
        if not 1 <= detail <= self.num_levels:
            raise ValueError(f"Vocabulary.detail: expected 1 to {self.num_levels}, got {detail}")
        return self.num_text + 1 + len(self.tasks) + detail - 1

    @property
    def num_special(self) -> int:
        return 1 + len(self.tasks) + self.num_levels

    @property
    def size(self) -> int:
        """Ids in all."""
        return self.offset(self.num_levels)

    def offset(self, level: int) -> int:
        """First id of the range of a level (from 0)."""
        return self.num_text + self.num_special + sum(self.codebook_sizes[:level])

    def to_ids(self, level: int, codes: Tensor) -> Tensor:
        """Code ids of a level (from 0) -> ids of the one space."""
        return codes + self.offset(level)

    def to_codes(self, level: int, ids: Tensor) -> Tensor:
        """The inverse of `to_ids`. Raises ValueError for an id outside the level's range."""
        low, high = self.offset(level), self.offset(level + 1)
        if ids.numel() and not (low <= int(ids.min()) and int(ids.max()) < high):
            raise ValueError(
                f"Vocabulary.to_codes: level {level + 1} has ids from {low} to {high - 1}, got {int(ids.min())} to "
                f"{int(ids.max())}"
            )
        return ids - low


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
