"""Text from a pyramid: what is read, the words of an answer one after the other, and how likely a given answer is.
Writing is decoding.py.

    [task] [detail]  [chunk 0: level 1 .. k] [chunk 1: ...] ...  [pad ...] [question] [answer] [end]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lm import layout
from lm.conditions import Condition
from lm.kv_cache import roomy_cache
from lm.sampling import Sampler
from pyramid.levels import check_detail
from pyramid.tokens import TokenPyramid

if TYPE_CHECKING:
    from lm.model import PyramidLM


@dataclass(frozen=True)
class Answer:
    """What a clip was read to be; `confidence`: the probability that the model gives to exactly this text."""

    text: str
    confidence: float


@dataclass(frozen=True)
class Reading:
    """B clips as they are read: embeddings `x` (B, S, dim), `intervals` (B, S, 4) and `positions` (B, S). The first
    `clip` places are the task, the detail and the codes, the same whatever is asked; `pads` (B,) follow, and the
    question. Text stands behind."""

    x: Tensor
    intervals: Tensor
    positions: Tensor
    clip: int
    pads: Tensor

    @property
    def length(self) -> int:
        return self.x.shape[1]

    def text(self, lm: PyramidLM, ids: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same of text ids (B, n) that begin at place `start`."""
        places = torch.arange(start, start + ids.shape[1], device=lm.device)
        intervals = layout.text_intervals(self.clip, self.clip + self.pads[:, None], start, ids.shape[1])
        return lm.embed_ids(ids), intervals, (places - self.pads[:, None]).clamp(min=self.clip)

    def asked(self, lm: PyramidLM, questions: Sequence[Sequence[int]]) -> Reading:
        """With a question behind each clip, of as many text ids as the model reads."""
        rows = [list(question[: lm.config.max_text]) for question in questions]
        longest = max(map(len, rows))
        ids = torch.tensor([[lm.vocabulary.pad] * (longest - len(row)) + row for row in rows], device=lm.device)
        padded = replace(self, pads=torch.tensor([longest - len(row) for row in rows], device=lm.device))
        parts = zip((self.x, self.intervals, self.positions), padded.text(lm, ids, self.clip), strict=True)
        x, intervals, positions = (torch.cat(part, dim=1) for part in parts)
        return replace(padded, x=x, intervals=intervals, positions=positions)

    def rows(self, index: Tensor) -> Reading:
        """Some of the clips, or one of them more than once."""
        return Reading(self.x[index], self.intervals[index], self.positions[index], self.clip, self.pads[index])


def read(lm: PyramidLM, tokens: TokenPyramid, detail: int, task: str) -> Reading:
    """Clips, nothing asked yet."""
    blocks = layout.blocks_of(tokens.pyramids, detail)
    codes = [tokens.ids[b.chunk][b.level].flatten(1) for b in blocks]
    seen = lm.seen_of(tokens, blocks, codes, Condition(task), range(len(blocks)))
    ids, pads = lm.prefix(task, detail, [[]] * tokens.batch_size)
    embedded = [lm.embed_block(b, codes[i], seen[i]) for i, b in enumerate(blocks)]
    x = torch.cat([lm.embed_ids(ids), *embedded], dim=1)
    start = ids.shape[1]
    intervals = [layout.prefix_intervals(pads, start), layout.clean_intervals(blocks, pads, start)]
    positions = torch.arange(x.shape[1], device=lm.device).expand(tokens.batch_size, -1)
    return Reading(x, torch.cat(intervals, dim=1), positions, x.shape[1], pads)


def asked(
    lm: PyramidLM, task: str, video: Tensor | TokenPyramid, questions: str | Sequence[str] | None, detail: int | None
) -> Reading:
    """Clips, or their tokens, as `read` takes them, with one question for all or one a clip. Raises ValueError for what
    cannot be read or asked, and names the method of the model."""
    name = f"PyramidLM.{task}"
    lm.vocabulary.task(task)
    detail = check_detail(lm.config.caption_detail if detail is None else detail, lm.num_levels, name)
    tokens = lm.tokenizer.encode(video, detail) if isinstance(video, Tensor) else video.truncate(detail)
    tokens = tokens.to(lm.device)
    if not tokens.batch_size:
        raise ValueError(f"{name}: expected at least one clip, got none")
    texts = [questions] * tokens.batch_size if isinstance(questions, str) else questions
    if texts is None:
        return read(lm, tokens, detail, task)
    if len(texts) != tokens.batch_size:
        raise ValueError(f"{name}: expected one question a clip, {tokens.batch_size}, got {len(texts)}")
    ids = [lm.text_ids(question) for question in texts]
    if longest := [question for question, row in zip(texts, ids, strict=True) if len(row) > lm.config.max_text]:
        raise ValueError(
            f"{name}: expected questions of at most {lm.config.max_text} tokens, got {len(longest)} longer ones, "
            f"the first {longest[0]!r}"
        )
    return read(lm, tokens, detail, task).asked(lm, ids)


class _Reader:
    """Log-probabilities of the next text id after a reading and what was said so far."""

    def __init__(self, lm: PyramidLM, reading: Reading) -> None:
        self.lm, self.reading, self.cache = lm, reading, roomy_cache()
        self.run, self.head = lm.runner(), lm.backbone.get_output_embeddings()

    def begin(self) -> Tensor:
        """(B, V) of the first id."""
        reading = self.reading
        last = torch.full_like(reading.pads, reading.length - 1)[:, None]
        return self._next(reading.x, reading.intervals, reading.positions, last)[:, 0]

    def go_on(self, ids: Tensor) -> Tensor:
        """(B, n, V) after each of the ids (B, n)."""
        return self._next(*self.reading.text(self.lm, ids, self.cache.get_seq_length()))

    def choose(self, rows: Tensor) -> None:
        """Goes on with some rows, or one of them more than once."""
        self.reading = self.reading.rows(rows)
        self.cache.reorder_cache(rows)

    def _next(self, x: Tensor, intervals: Tensor, positions: Tensor, take: Tensor | None = None) -> Tensor:
        out: Any = self.run(x, intervals, positions, self.cache, take)
        return self.head(out).float().log_softmax(dim=-1)


def answers(
    lm: PyramidLM,
    reading: Reading,
    *,
    beams: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
) -> list[Answer]:
    """One text a clip. `beams`: the most likely text that a search of so many finds, 1 takes the likeliest id at each
    step; `temperature` above 0 draws instead, clip i with seed + i, or with the i-th of several. Raises ValueError for
    numbers out of range, another number of seeds, or beams and a temperature at once."""
    if beams < 1 or not temperature >= 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"answers: expected beams of at least 1, a temperature of at least 0 and top_p in (0, 1], got {beams}, "
            f"{temperature} and {top_p}"
        )
    if beams > 1 and temperature:
        raise ValueError(f"answers: expected one beam where text is drawn, got {beams} and temperature {temperature}")
    clips, end, device = len(reading.pads), lm.text.eos_token_id, lm.device
    seeds = [seed + i for i in range(clips)] if isinstance(seed, int) else list(seed)
    if len(seeds) != clips:
        raise ValueError(f"answers: expected a seed a clip, {clips}, got {len(seeds)}")
    sampler = Sampler(seeds, device)
    sampler.temperature, sampler.top_p = temperature, top_p
    reader = _Reader(lm, reading)
    likely = reader.begin()[:, None]  # (B, beams so far, V)
    scores = torch.zeros(clips, 1, device=device)
    said = torch.zeros(clips, 1, 0, dtype=torch.int64, device=device)
    done = torch.zeros(clips, 1, dtype=torch.bool, device=device)
    silence = torch.full((likely.shape[-1],), -torch.inf, device=device)
    silence[end] = 0.0  # a text that has ended costs nothing more
    for step in range(lm.config.max_text):
        likely = torch.where(done[..., None], silence, likely)
        if temperature:
            ids = sampler(likely).masked_fill(done, end)
            parents = torch.zeros_like(ids)
            scores = scores + likely.gather(2, ids[..., None])[..., 0]
        else:
            total = (scores[..., None] + likely).flatten(1)
            scores, best = total.topk(min(beams, total.shape[1]), dim=1)
            parents, ids = best // likely.shape[-1], best % likely.shape[-1]
        rows = (torch.arange(clips, device=device)[:, None] * said.shape[1] + parents).flatten()
        said = torch.cat([said.flatten(0, 1)[rows].unflatten(0, ids.shape), ids[..., None]], dim=2)
        done = done.flatten()[rows].unflatten(0, ids.shape) | (ids == end)
        if done.all() or step == lm.config.max_text - 1:
            break
        if beams > 1:
            reader.choose(rows)
        likely = reader.go_on(ids.flatten()[:, None])[:, 0].unflatten(0, ids.shape)
    first = scores.argmax(dim=1)
    texts = [row[int(at)].tolist() for row, at in zip(said, first, strict=True)]
    sure = scores.gather(1, first[:, None])[:, 0].exp().tolist()
    texts = [text[: text.index(end)] if end in text else text for text in texts]
    return [
        Answer(lm.text.decode(text, skip_special_tokens=True).strip(), confidence)
        for text, confidence in zip(texts, sure, strict=True)
    ]


def log_likelihoods(lm: PyramidLM, reading: Reading, texts: Sequence[str]) -> Tensor:
    """Log-probability (B, len(texts)) of each text as the answer of each clip, its end counted in. Raises ValueError
    for a text that is longer than the model's answers."""
    end, limit = lm.text.eos_token_id, lm.config.max_text
    rows = [[*lm.text_ids(text), end] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > limit:
            raise ValueError(f"log_likelihoods: expected texts of fewer than {limit} tokens, got {len(row)}: {text!r}")
    longest, clips = max(map(len, rows)), len(reading.pads)
    ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows], device=lm.device)
    counts = torch.tensor([len(row) for row in rows], device=lm.device)
    reader = _Reader(lm, reading)
    likely = reader.begin().repeat_interleave(len(rows), dim=0)[:, None]
    if longest > 1:
        reader.choose(torch.arange(clips, device=lm.device).repeat_interleave(len(rows)))
        likely = torch.cat([likely, reader.go_on(ids[:, :-1].repeat(clips, 1))], dim=1)
    each = likely.unflatten(0, (clips, len(rows))).gather(3, ids.expand(clips, -1, -1)[..., None])[..., 0]
    counted = torch.arange(longest, device=lm.device) < counts[:, None]
    return (each * counted).sum(dim=2)
