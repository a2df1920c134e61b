"""The frozen vocabulary of the word levels: a table of words and their sentence-space embeddings.

SPAE (2306.17842) quantizes to the input embeddings of a language model. Here a word's code is the *sentence*
embedding of that word alone, in the space in which a sentence model places captions: there the mean of a few words
comes close to a caption (docs/decisions.md). The table is centred and reduced by principal components; the constants
and a hash are stored with it, so that ids keep their meaning. Embeddings are frozen: what is trained is the projection
between latents and this space (`quantize/words.py`). How a table is made: `vocabulary.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyramid.files import replacing

FORMAT_VERSION = 1
DEFAULT_TABLE = Path(__file__).parent / "assets" / "words.safetensors"

# Words that carry no picture: function words and what captions say of themselves.
STOP_WORDS = frozenset(
    "a an the this that these those and or but of in on at to from with by for as into onto over under near is are was"
    " were be been being it its his her their there then than so very while when who which what"
    " moves move moving goes going drifts drifting background scene video clip image picture shows showing".split()
)


@dataclass(frozen=True, eq=False)
class WordTable:
    """`words`: K distinct lower-case strings without spaces; `embeddings` (K, E) float32, centred, mean square norm
    of one per word; `mean` (S,) and `basis` (S, E) map a sentence embedding (S,) of the text model named in `source`
    into the same space: (s - mean) @ basis. Embeddings and basis are rounded to half precision, in which they are saved
    and hashed."""

    words: tuple[str, ...]
    embeddings: Tensor
    mean: Tensor
    basis: Tensor
    source: str

    def __post_init__(self) -> None:
        if len(self.words) != len(self.embeddings) or len(set(self.words)) != len(self.words):
            raise ValueError(
                f"WordTable: expected one row for each of the distinct words, got {len(self.embeddings)} rows and "
                f"{len(set(self.words))} distinct of {len(self.words)} words"
            )
        for name in ("embeddings", "basis"):
            object.__setattr__(self, name, getattr(self, name).half().float())
        object.__setattr__(self, "_ids", {word: index for index, word in enumerate(self.words)})

    def __len__(self) -> int:
        return len(self.words)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits over words and embeddings: two tables with the same hash give the same ids."""
        digest = hashlib.sha256("\n".join(self.words).encode())
        digest.update(self.embeddings.half().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Words joined by single spaces; the exact inverse of `text_to_ids`. Raises ValueError as `ids_to_words`."""
        return " ".join(self.ids_to_words(ids))

    def ids_to_words(self, ids: Sequence[int]) -> list[str]:
        """One word an id. Raises ValueError for an id out of range."""
        for i in ids:
            if not 0 <= i < len(self):
                raise ValueError(f"WordTable.ids_to_words: ids must be from 0 to {len(self) - 1}, got {i}")
        return [self.words[i] for i in ids]

    def text_to_ids(self, text: str) -> list[int]:
        """Ids of space-separated words. Raises ValueError for a word that is not in the table."""
        ids = self.__dict__["_ids"]
        unknown = [word for word in text.split() if word not in ids]
        if unknown:
            raise ValueError(f"WordTable.text_to_ids: expected words of the table, got {unknown[0]!r}")
        return [ids[word] for word in text.split()]

    def content_ids(self, caption: str) -> list[int]:
        """Ids of the distinct content words of a caption that the table knows, in order of appearance."""
        ids = self.__dict__["_ids"]
        return [ids[word] for word in content_words(caption) if word in ids]

    def place(self, sentences: Tensor) -> Tensor:
        """Sentence embeddings (N, S) of the text model that the table was made with, in the table's space: (N, E).
        Raises ValueError for another S."""
        if sentences.ndim != 2 or sentences.shape[1] != len(self.mean):
            raise ValueError(
                f"WordTable.place: expected sentence embeddings (N, {len(self.mean)}) of {self.source}, "
                f"got {tuple(sentences.shape)}"
            )
        return (sentences.double() - self.mean.double()).float() @ self.basis

    def save(self, path: str | Path) -> None:
        """Write as safetensors, at once or not at all; exact, as embeddings and basis are half precision already."""
        tensors = {"embeddings": self.embeddings.half(), "mean": self.mean.float(), "basis": self.basis.half()}
        tensors["words"] = torch.frombuffer(bytearray("\n".join(self.words).encode()), dtype=torch.uint8)
        metadata = {"format": "pyramid.words", "version": str(FORMAT_VERSION), "source": self.source}
        metadata["hash"] = self.hash
        with replacing(path) as part:
            save_file({name: t.contiguous() for name, t in tensors.items()}, part, metadata=metadata)

    @staticmethod
    def load(path: str | Path = DEFAULT_TABLE) -> WordTable:
        """Read a table that `save` wrote. Raises FileNotFoundError, or ValueError for another format or version, or
        words and embeddings that don't have the hash stored with them."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"WordTable.load: expected a word table, found no file {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                found = (metadata.get("format"), metadata.get("version"))
                if found != ("pyramid.words", str(FORMAT_VERSION)):
                    raise ValueError(f"expected pyramid.words version {FORMAT_VERSION}, got {found}")
                words = bytes(file.get_tensor("words").numpy()).decode().split("\n")
                embeddings, mean, basis = (file.get_tensor(name).float() for name in ("embeddings", "mean", "basis"))
                table = WordTable(tuple(words), embeddings, mean, basis, metadata.get("source", "unknown"))
                stored = metadata.get("hash", table.hash)  # the first tables were saved without
                if stored != table.hash:
                    raise ValueError(f"expected words and embeddings with the stored hash {stored}, got {table.hash}")
                return table
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"WordTable.load: {path}: {error}") from None


def content_words(caption: str) -> list[str]:
    """The distinct words and numerals of a caption in lower case, in order of appearance, without those that carry no
    picture."""
    return [word for word in dict.fromkeys(re.findall(r"[a-z]+|[0-9]+", caption.lower())) if word not in STOP_WORDS]
