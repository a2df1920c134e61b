"""What the word levels of a clip say, word by word, with how sure the tokenizer is: `spell`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyramid import ops
from pyramid.levels import Level, chunk_lengths
from pyramid.nn.blocks import State
from pyramid.tokenizer import PyramidTokenizer


@dataclass(frozen=True)
class SpeltWord:
    """One token. `distance`: squared, from what its level was asked for to the word; `probability` among all words of
    the table at the temperature given; `others`: the words that come next, with their probabilities."""

    word: str
    distance: float
    probability: float
    others: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class SpeltLevel:
    """One word level of one chunk: `number` from 1 as in `detail`, its `grid`, and its words in scan order."""

    number: int
    grid: Level
    words: tuple[SpeltWord, ...]


def spell(
    tokenizer: PyramidTokenizer, video: Tensor, *, temperature: float = 0.1, num_others: int = 0
) -> Iterator[list[SpeltLevel]]:
    """The word levels of each chunk of one clip (1, 3, T, H, W) in [-1, 1], chunk by chunk. The words are those of
    `tokenizer.words(tokenizer.encode(video))`. `temperature`: of the softmax over -|z - e|^2, that of training.

    Raises ValueError for a tokenizer without word levels, more than one clip, or a temperature that is not above 0.
    """
    table, levels = tokenizer.table, tokenizer.word_levels
    if table is None or not levels:
        raise ValueError("spell: expected a tokenizer with a level of words, got one without")
    if video.ndim != 5 or len(video) != 1:
        raise ValueError(f"spell: expected one clip (1, 3, T, H, W), got {tuple(video.shape)}")
    if not temperature > 0:
        raise ValueError(f"spell: temperature must be above 0, got {temperature}")
    state: State | None = None
    for chunk in video.split(chunk_lengths(video.shape[2], tokenizer.config.chunk_frames), dim=2):
        quantized, state = tokenizer.quantize_chunk(chunk, state, max(levels) + 1)
        spelt = []
        for index in levels:
            ids, query = quantized.ids[index][0], quantized.queries[index][0].float()
            embeddings = tokenizer.levels.levels[index].quantizer.embeddings
            words = _words(ids.flatten(), query.flatten(0, 2), embeddings, table.words, temperature, num_others)
            spelt.append(SpeltLevel(index + 1, Level(*ids.shape), words))
        yield spelt


def _words(
    ids: Tensor, queries: Tensor, embeddings: Tensor, names: tuple[str, ...], temperature: float, num_others: int
) -> tuple[SpeltWord, ...]:
    """ids (N,), queries (N, E), embeddings (K, E)."""
    distance = (queries - embeddings[ids]).square().sum(dim=1)
    log_norm = ops.code_logsumexp(queries, embeddings, temperature)
    probability = (-distance / temperature - log_norm).exp().tolist()
    others: list[tuple[tuple[str, float], ...]] = [()] * len(ids)
    if num_others:
        nearest = torch.cdist(queries, embeddings).topk(min(num_others + 1, len(names)), largest=False).indices
        far = (queries[:, None] - embeddings[nearest]).square().sum(dim=2)
        shares = (-far / temperature - log_norm[:, None]).exp().tolist()
        others = [
            tuple((names[k], share) for k, share in zip(row, values, strict=True) if k != own)[:num_others]
            for row, values, own in zip(nearest.tolist(), shares, ids.tolist(), strict=True)
        ]
    rows = zip(ids.tolist(), distance.tolist(), probability, others, strict=True)
    return tuple(SpeltWord(names[k], d, p, o) for k, d, p, o in rows)
