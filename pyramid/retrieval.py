"""Search among clips by their coarse tokens: the words at the top of each pyramid against the words of a query, or of
another clip.

A word of the query is as near to a clip as the nearest of the clip's words (late interaction, ColBERT, 2004.12832); how
near, counts by how much that tells clips apart: each word's similarities are standardised over the index, and what all
clips say of themselves decides nothing. A clip takes some 70 numbers, a query one pass over them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyramid.files import filling
from pyramid.levels import Pyramid
from pyramid.tokens import TokenPyramid
from pyramid.words import WordTable, content_words

FORMAT, FORMAT_VERSION = "pyramid.index", 2


@dataclass(frozen=True)
class Hit:
    """A clip that was found: its place in the index, its name, and its score: the mean over the words of the query, in
    standard deviations of this index; `span`: from and to which second of the file it goes, None for all of it."""

    place: int
    name: str
    score: float
    span: tuple[float, float] | None = None


class ClipIndex:
    """`ids` (N, S) int32: coarse tokens, `TokenPyramid.flatten`, whose places `word_places` are words of `table`;
    `names` of the N clips; `shape`: (frames, height, width) of the clips as they were read; `tokenizer`: a name of what
    made the tokens, `fingerprint` of its weights; `spans`: seconds of each clip in its file, None for all of it. Raises
    ValueError for numbers that do not fit each other, or no word."""

    def __init__(
        self,
        ids: Tensor,
        names: Sequence[str],
        word_places: Sequence[int],
        table: WordTable,
        shape: tuple[int, int, int],
        detail: int,
        tokenizer: str,
        fingerprint: str = "",
        spans: Sequence[tuple[float, float] | None] | None = None,
    ) -> None:
        spans = [None] * len(ids) if spans is None else list(spans)
        if not len(ids) == len(names) == len(spans):
            raise ValueError(f"ClipIndex: expected {len(ids)} names and spans, got {len(names)} and {len(spans)}")
        if not word_places:
            raise ValueError("ClipIndex: expected tokens with words among them, got none; read a finer detail")
        self.ids, self.names, self.word_places = ids.to(torch.int32), list(names), list(word_places)
        self.table, self.shape, self.detail, self.tokenizer = table, shape, detail, tokenizer
        self.fingerprint, self.spans = fingerprint, spans

    def __len__(self) -> int:
        return len(self.names)

    @property
    def words(self) -> Tensor:
        """(N, P) word ids of each clip."""
        return self.ids[:, self.word_places].long()

    def tokens(self, places: Sequence[int], pyramids: Sequence[Pyramid]) -> TokenPyramid:
        """The coarse tokens of some clips; `pyramids`: of this shape and detail."""
        frames, height, width = self.shape
        flat = self.ids[list(places)].long()
        return TokenPyramid.unflatten(flat, pyramids, num_frames=frames, height=height, width=width)

    def unknown(self, text: str) -> list[str]:
        """The content words of a text that the table does not know, and a search cannot use."""
        known = set(self.table.ids_to_words(self.table.content_ids(text)))
        return [word for word in content_words(text) if word not in known]

    def search(self, query: str | Tensor, top: int = 10) -> list[Hit]:
        """The nearest clips, best first. `query`: a text, or word ids (P,) of a clip. Raises ValueError for a text
        without a word that the table knows, or no clip asked for."""
        if top < 1:
            raise ValueError(f"ClipIndex.search: top: expected at least 1, got {top}")
        wanted = self.table.content_ids(query) if isinstance(query, str) else query.unique().tolist()
        if not wanted:
            raise ValueError(f"ClipIndex.search: expected a text with words of the table, got {query!r}")
        scores = self._scores(torch.tensor(wanted))
        best = scores.topk(min(top, len(self)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Hit(place, self.names[place], score, self.spans[place]) for place, score in pairs]

    def _scores(self, wanted: Tensor) -> Tensor:
        """(N,)"""
        vectors = torch.nn.functional.normalize(self.table.embeddings, dim=1)
        near = vectors[wanted] @ vectors.T  # (Q, K): each word of the query and all words there are
        words, total = self.words, torch.zeros(len(self))
        for row in near:
            found = row[words].amax(dim=1)
            spread = found.std(correction=0)
            if spread > 1e-6:
                total += (found - found.mean()) / spread
        return total / len(wanted)

    # ------------------------------------------------------------------------------------------ folders

    def save(self, folder: str | Path) -> None:
        """Write tokens.safetensors, words.safetensors and index.json, the last; each file whole or not at all."""
        with filling(Path(folder), "index.json") as part:
            save_file({"ids": self.ids.contiguous()}, part / "tokens.safetensors")
            self.table.save(part / "words.safetensors")
            record = {
                "format": FORMAT,
                "version": FORMAT_VERSION,
                "tokenizer": self.tokenizer,
                "shape": list(self.shape),
                "detail": self.detail,
                "word_places": self.word_places,
                "fingerprint": self.fingerprint,
                "names": self.names,
                "spans": self.spans,
            }
            (part / "index.json").write_text(json.dumps(record) + "\n", encoding="utf8")

    @staticmethod
    def load(folder: str | Path) -> ClipIndex:
        """Raises FileNotFoundError for no index, ValueError for one of another format."""
        folder = Path(folder)
        file = folder / "index.json"
        if not file.is_file():
            raise FileNotFoundError(f"ClipIndex: expected an index, found no {file}; `pyramid index` makes one")
        record = json.loads(file.read_text(encoding="utf8"))
        found = (record.get("format"), record.get("version"))
        if found != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"ClipIndex: {folder}: expected {FORMAT}, version {FORMAT_VERSION}, got {found}")
        frames, height, width = record["shape"]
        return ClipIndex(
            load_file(folder / "tokens.safetensors")["ids"],
            record["names"],
            record["word_places"],
            WordTable.load(folder / "words.safetensors"),
            (frames, height, width),
            record["detail"],
            record["tokenizer"],
            record["fingerprint"],
            [span and (span[0], span[1]) for span in record["spans"]],
        )


def word_places(pyramids: Sequence[Pyramid], word_levels: Sequence[int]) -> list[int]:
    """Where the words stand among the flat tokens of a clip of these chunks."""
    places: list[int] = []
    start = 0
    for pyramid in pyramids:
        for index, level in enumerate(pyramid.levels):
            places += range(start, start + level.count) if index in word_levels else ()
            start += level.count
    return places
