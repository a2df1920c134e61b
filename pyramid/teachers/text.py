"""What a text says of its clip: captions (the default teacher), or the names of classes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from pyramid.teachers.base import Batch, Teacher, matching_pursuit
from pyramid.text_encoder import TextEncoder
from pyramid.words import WordTable, content_words

_REMEMBERED = 1 << 16  # texts whose vectors and words are kept; then all are forgotten


class TextTeacher(Teacher):
    """The space is the word table's own. A text is the mean of its content words in it; with `encoder`, the text model
    that the table was made with, it is the text's sentence embedding, and a content word that the table lacks is
    replaced by the nearest that it has.

    Args:
        field: of the batch, "caption" or "label". Of a label such as "Greek/character23" the letters are read.

    Raises ValueError for an encoder that is not the table's.
    """

    def __init__(self, table: WordTable, field: str = "caption", encoder: TextEncoder | None = None) -> None:
        self.table, self.field, self.encoder = table, field, encoder
        self.words = torch.nn.functional.normalize(table.embeddings, dim=-1)
        self._vectors: dict[str, Tensor] = {}
        self._ids: dict[str, list[int]] = {}
        if encoder is not None:
            table.place(encoder(["a"]))  # or an error

    def embed(self, batch: Batch) -> Tensor:
        texts = self._texts(batch)
        for memory in (self._vectors, self._ids):
            if len(memory) > _REMEMBERED:
                memory.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        self._vectors.update(zip(new, self._embed(new), strict=True))
        return torch.stack([self._vectors[text] for text in texts]).to(self.words.device)

    def word_sets(self, batch: Batch, count: int, vectors: Tensor | None = None) -> list[list[int]]:
        """The content words of the text: all of them if `count` are enough, else those that matching pursuit finds to
        say the most of it."""
        sets = []
        vectors = self.embed(batch) if vectors is None else vectors
        for text, vector in zip(self._texts(batch), vectors, strict=True):
            ids = self._content_ids(text)
            if len(ids) > count:
                chosen = matching_pursuit(vector, self.words[ids], count)
                rest = [k for k in range(len(ids)) if k not in chosen]  # where pursuit ends early, in order
                ids = [ids[k] for k in [*chosen, *rest][:count]]
            sets.append(ids)
        return sets

    def phrases(self, batch: Batch) -> list[list[list[int]]]:
        return [[self._content_ids(phrase) for phrase in noun_phrases(text)] for text in self._texts(batch)]

    def _texts(self, batch: Batch) -> list[str]:
        values = batch.get(self.field)
        if values is None or isinstance(values, Tensor) or any(value is None for value in values):
            found = "none" if values is None else "numbers" if isinstance(values, Tensor) else "clips without"
            raise ValueError(f"TextTeacher: expected a {self.field} with words for each clip, got {found}")
        return [re.sub(r"[^\w]|[\d_]", " ", str(value)) if self.field == "label" else value for value in values]

    def _embed(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return self.words.new_empty(0, self.words.shape[1]).cpu()
        if self.encoder is not None:
            vectors = self.table.place(self.encoder(texts))
        else:
            rows = [self.table.embeddings[self._content_ids(text)].sum(dim=0) for text in texts]
            vectors = torch.stack(rows)
        return torch.nn.functional.normalize(vectors, dim=-1)

    def _content_ids(self, text: str) -> list[int]:
        if text not in self._ids:
            ids = self.table.content_ids(text)
            if self.encoder is not None:
                known = {self.table.words[i] for i in ids}
                unknown = [word for word in content_words(text) if word not in known]
                vectors = self.table.place(self.encoder(unknown))
                ids += torch.cdist(vectors, self.table.embeddings).argmin(dim=1).tolist() if unknown else []
            self._ids[text] = list(dict.fromkeys(ids))
        return self._ids[text]


def noun_phrases(text: str) -> list[str]:
    """A text cut before each article but the first: what is said of one thing, and what it does.

    >>> noun_phrases("a small red star moves left on a striped background, the camera pans right")
    ['a small red star moves left on', 'a striped background,', 'the camera pans right']
    >>> noun_phrases("Put the marker in an orange cup")
    ['Put the marker in', 'an orange cup']
    """
    starts = [match.start() for match in re.finditer(r"\b(?:an?|the)\b", text, flags=re.IGNORECASE)]
    return [text[a:b].strip() for a, b in itertools.pairwise([0, *starts[1:], len(text)])]
