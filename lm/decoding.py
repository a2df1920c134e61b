"""Three ways to write a pyramid with the same weights, block by block, coarse to fine.

    next-level   one pass of the network a block: all its tokens at once, each by itself
    masked       several passes a block (MaskGIT, 2202.04200): some tokens a pass, seen by the next ones
    raster       one token a pass, in scan order: the plain reference. Between passes that look at the whole block the
                 token that became known and the next are computed alone (Fast-dLLM, 2505.22618)

The order of `masked`: "random"; "halton", a low-discrepancy sequence over the grid, so that tokens of one pass stand
far from each other (2503.17076); "confidence", the likeliest draws first (MaskGIT), with noise that falls to none.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from lm import layout
from lm.conditions import Condition
from lm.context import Seen, hint_latents
from lm.kv_cache import roomy_cache
from lm.layout import Block
from lm.sampling import Sampler, guidance_weights
from pyramid.tokens import TokenPyramid

if TYPE_CHECKING:
    from lm.model import PyramidLM

Decoder = Literal["next-level", "masked", "raster"]
Order = Literal["random", "halton", "confidence"]


class TextWarning(UserWarning):
    """Text is not read: it is longer than the model reads, or negative without guidance."""


@dataclass(frozen=True)
class Decoding:
    """How a model writes.

    passes: of "masked", forward passes a block, one number a level (the last one for all further levels);
        `first_passes` the same of the first chunk, an image, where it is to have others. temperature: a number a level
        likewise, 0 takes the likeliest code. top_p: draw from the smallest set of codes with this share of the
        probability.
    guidance: g in u + g (c - u), logits with the text c and without (or with the negative prompt) u; 1 for none.
        guidance_given: the same for what a hint shows (2211.09800, section 3.2.1). ramp: the share of guidance
        - 1 at the first level and at the last, in a straight line between (VAR, 2404.02905, raises it level by level).
    noise: of the order "confidence", the Gumbel noise on log-probabilities in the first pass.
    refresh: of "raster", every how many passes the whole block is looked at; 1 for always, which is exact.

    One number may stand for a tuple of one. Raises ValueError for a number out of range.
    """

    decoder: Decoder = "masked"
    passes: tuple[int, ...] = (2,)
    first_passes: tuple[int, ...] = ()
    order: Order = "random"
    temperature: tuple[float, ...] = (1.0,)
    top_p: float = 0.95
    guidance: float = 1.5
    guidance_given: float = 1.0
    ramp: tuple[float, float] = (1.0, 1.0)
    noise: float = 4.5
    refresh: int = 16

    def __post_init__(self) -> None:
        for name in ("passes", "first_passes", "temperature"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, Sequence) else (value,))
        for name, known in (("decoder", get_args(Decoder)), ("order", get_args(Order))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not self.passes or min(*self.passes, *self.first_passes, 1) < 1:
            raise ValueError(f"passes must be at least 1, got {self.passes} and {self.first_passes}")
        if not self.temperature or not all(0 <= value < math.inf for value in self.temperature):
            raise ValueError(f"temperature must be finite and 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        for name in ("guidance", "guidance_given", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and 0 or more, got {getattr(self, name)}")
        if self.refresh < 1:
            raise ValueError(f"refresh must be at least 1, got {self.refresh}")
        if len(self.ramp) != 2 or not all(0 <= share <= 1 for share in self.ramp):
            raise ValueError(f"ramp must be two shares from 0 to 1, got {self.ramp}")

    @staticmethod
    def of(values: dict[str, Any]) -> Decoding:
        """From the keys that are given; None stands for the default."""
        return Decoding(**{name: value for name, value in values.items() if value is not None})

    def turns(self, block: Block) -> list[int]:
        """How many tokens of a block are known after each pass."""
        passes = self.first_passes if block.chunk == 0 and self.first_passes else self.passes
        if self.decoder == "next-level":
            return [block.count]
        if self.decoder == "raster":
            return list(range(1, block.count + 1))
        return turns(block.count, passes[min(block.level, len(passes) - 1)])


def turns(count: int, passes: int) -> list[int]:
    """How many tokens of a block are known after each pass: the cosine schedule, every pass adding at least one.

    >>> turns(16, 4)
    [2, 5, 10, 16]
    """
    known: list[int] = []
    passes = min(passes, 4 * count)  # of more, most would add nothing
    for turn in range(1, passes + 1):
        stop = count - math.floor(count * math.cos(math.pi / 2 * turn / passes) + 1e-9)
        if stop > (known[-1] if known else 0):
            known.append(stop)
    return known


def num_passes(decoding: Decoding, blocks: Sequence[Block]) -> int:
    """Forward passes that these blocks take."""
    return sum(len(decoding.turns(block)) for block in blocks)


@lru_cache(maxsize=256)
def halton_order(grid: tuple[int, int, int]) -> tuple[int, ...]:
    """The cells of a grid (t, h, w), by flat index, in the order in which a Halton sequence (bases 2, 3 and 5, for
    width, height and time) first falls into them."""
    t, h, w = grid
    seen: dict[int, None] = {}
    index = 0
    while len(seen) < t * h * w:
        x, y, z = (_radical_inverse(index, base) for base in (2, 3, 5))
        seen.setdefault((int(z * t) * h + int(y * h)) * w + int(x * w))
        index += 1
    return tuple(seen)


def _radical_inverse(index: int, base: int) -> float:
    value, scale = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * scale
        scale /= base
    return value


def write(
    lm: PyramidLM,
    prompts: Sequence[str],
    detail: int,
    condition: Condition,
    decoding: Decoding,
    *,
    num_frames: int | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    negative: Sequence[str] | str = "",
    on_block: Callable[[int, int, tuple[Tensor, ...]], None] | None = None,
    forced: TokenPyramid | None = None,
) -> TokenPyramid:
    """`PyramidLM.generate`, with all that it decides on spelled out."""
    if not prompts:
        raise ValueError("PyramidLM.generate: expected at least one prompt, got none")
    batch, condition = len(prompts), condition.to(lm.device)
    num_frames, (height, width) = _shape(lm, condition, num_frames, size)
    pyramids = lm.tokenizer.pyramids(num_frames, height, width)
    chunk_frames = lm.tokenizer.config.chunk_frames
    _check_fits(condition, batch, num_frames, (height, width), chunk_frames, len(pyramids))
    negatives = [negative] * batch if isinstance(negative, str) else list(negative)
    if len(negatives) != batch:
        raise ValueError(
            f"PyramidLM.generate: negative: expected a text or one for each of {batch}, got {len(negatives)}"
        )
    blocks = layout.blocks_of(pyramids, detail, lm.memory)
    sampler = Sampler([seed + i for i in range(batch)], lm.device)

    # The branches, one behind the other in the batch: as asked; without the text; without anything given.
    texts = [_read(lm, text, f"prompt {row + 1}") for row, text in enumerate(prompts)]
    against = [_read(lm, text, f"negative {row + 1}") for row, text in enumerate(negatives)]
    guided = decoding.guidance != 1 and texts != against
    if decoding.guidance == 1 and any(against):
        _warn("the negative prompt is not read: guidance is 1")
    loosed = decoding.guidance_given != 1 and condition.hint is not None
    branches = 3 if loosed else 2 if guided else 1
    sentences = [*texts, *against * (branches > 1), *against * (branches > 2)]
    shown = [
        torch.cat([hint] * min(branches, 2) + [hint * 0] * (branches > 2))
        for hint in hint_latents(lm.tokenizer, condition)
    ]

    pen = _Pen(lm, condition.task, detail, sentences)
    context = lm.context(len(sentences), height, width, shown)
    chunks: list[list[Tensor]] = [[] for _ in pyramids]
    for block in blocks:
        given = condition.codes(block.chunk, block.level)
        if given is None or block.remembered:
            pen.begin(block, context.at(block))
        if given is not None:
            codes = given.flatten(1).repeat(branches, 1)
        else:
            sampler.weights = guidance_weights(decoding, branches, block.level, lm.num_levels)
            sampler.temperature = decoding.temperature[min(block.level, len(decoding.temperature) - 1)]
            sampler.top_p = decoding.top_p
            codes = _fill(block, decoding, sampler, pen)
        chunks[block.chunk].append(codes[:batch].reshape(-1, *block.grid))
        if forced is not None:
            codes = forced.ids[block.chunk][block.level].to(lm.device).flatten(1).repeat(branches, 1)
        if block.remembered:
            pen.keep(codes)
        context.add(block, codes)
        if on_block is not None:
            on_block(block.chunk, block.level, tuple(chunks[block.chunk]))
    with torch.inference_mode(False):  # tokens that may be trained on
        ids = tuple(tuple(level.clone() for level in levels) for levels in chunks)
    return TokenPyramid(ids, num_frames, height, width)


class _Pen:
    """The model at a place of a sequence that is being written: `begin` a block, `look` at it once or more, `keep` it
    where later ones see it. What is kept waits to enter the cache together with the next block that is looked at: the
    prefix at first, then every block that is kept."""

    def __init__(self, lm: PyramidLM, task: str, detail: int, sentences: Sequence[Sequence[int]]) -> None:
        self.lm, self.run, self.cache = lm, lm.runner(), roomy_cache()
        ids, self.pads = lm.prefix(task, detail, sentences)
        self.start = ids.shape[1]
        # Parts of the sequence: embeddings (R, n, dim), intervals (R, n, 4), positions (R, n).
        places = self._positions(torch.arange(self.start))
        self.waiting = [(lm.embed_ids(ids), layout.prefix_intervals(self.pads, self.start), places)]
        self.cached = 0  # tokens of a block that stand in the cache until the next block is looked at
        self.fresh = 0  # in scan order: how many tokens of the block were known when the whole of it was looked at

    def _positions(self, places: Tensor) -> Tensor:
        return (places.to(self.lm.device)[None] - self.pads[:, None]).clamp(min=0)

    def begin(self, block: Block, seen: Seen) -> None:
        self.block, self.seen, self.place = block, seen, self.lm.embed_place(block, seen)
        self.intervals = layout.clean_intervals([block], self.pads, self.start)
        self.positions = self._positions(layout.places_of([block], self.start))

    def _part(self, codes: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return self.lm.embed_codes(self.block, codes, hidden) + self.place, self.intervals, self.positions

    def look(self, codes: Tensor, hidden: Tensor, take: Tensor) -> Tensor:
        """One pass: hidden states (R, m, dim) of the tokens `take` (R, m) of the block, of whose codes (R, n) those not
        `hidden` are known."""
        self.cache.crop(-self.cached)
        self.cached = self.block.count
        parts = zip(*self.waiting, self._part(codes, hidden), strict=True)
        x, intervals, positions = (torch.cat(part, dim=1) for part in parts)
        self.waiting.clear()
        return self.run(x, intervals, positions, self.cache, take + (x.shape[1] - self.block.count))

    def look_on(self, codes: Tensor, hidden: Tensor, turn: int) -> Tensor:
        """The pass after that of token `turn` - 1 in scan order, by two tokens: that one, now known, and `turn`, whose
        hidden state (R, 1, dim) is returned. Each sees itself, the tokens before it as they came to be known and those
        after it as they were, hidden, at the last `look`. So the whole of a scan is one sequence."""
        two, before = slice(turn - 1, turn + 1), self.start + self.block.start
        stop = before + self.block.count + turn - self.fresh
        bounds = [[before + self.fresh, before + turn + step, stop + step] for step in (0, 1)]
        ends = torch.tensor(bounds, device=self.pads.device).expand(len(self.pads), -1, -1)
        intervals = torch.cat([self.pads[:, None, None].expand(-1, 2, 1), ends], dim=2)
        x = self.lm.embed_codes(self.block, codes[:, two], hidden[:, two]) + self.place[:, two]
        out = self.run(x, intervals, self.positions[:, two], self.cache, torch.ones_like(codes[:, :1]))
        self.cache.crop(-1)  # the token that is still hidden
        self.cached += 1
        return out

    def draw(self, codes: Tensor, hidden: Tensor, take: Tensor, sampler: Sampler) -> Tensor:
        """One pass, and codes (R, m) drawn for the tokens `take`."""
        return self._sample(self.look(codes, hidden, take), take, sampler)

    def scan(self, codes: Tensor, hidden: Tensor, turn: int, refresh: int, sampler: Sampler) -> Tensor:
        """One pass in scan order, and codes (R, 1) drawn for the token `turn`."""
        take = torch.full_like(codes[:, :1], turn)
        if turn % refresh:
            return self._sample(self.look_on(codes, hidden, turn), take, sampler)
        self.fresh = turn
        return self.draw(codes, hidden, take, sampler)

    def _sample(self, states: Tensor, take: Tensor, sampler: Sampler) -> Tensor:
        points = self.lm.points(self.block, self.seen, take)
        return self.lm.heads[self.block.level].sample(states, sampler, points)

    def keep(self, codes: Tensor) -> None:
        """The block is done, and later ones see it."""
        self.waiting.append(self._part(codes))


def _fill(block: Block, decoding: Decoding, sampler: Sampler, pen: _Pen) -> Tensor:
    """The codes (R, n) of a block, R rows in all branches."""
    codes = torch.zeros(sampler.num_rows, block.count, dtype=torch.int64, device=sampler.device)
    hidden = torch.ones_like(codes, dtype=torch.bool)
    stops = decoding.turns(block)
    sampler.scores = decoding.decoder == "masked" and decoding.order == "confidence"
    if sampler.scores:
        every = torch.arange(block.count, device=sampler.device).expand_as(codes)
        for turn, stop in enumerate(stops, start=1):
            drawn = pen.draw(codes, hidden, every, sampler)
            noise = decoding.noise * (1 - turn / len(stops)) * sampler.gumbel(block.count)
            score = sampler.spread(sampler.take_score() + noise).masked_fill(~hidden, math.inf)
            reveal = hidden & (score.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < stop)
            codes = torch.where(reveal, drawn, codes)
            hidden = hidden & ~reveal
        return codes
    if decoding.decoder == "raster":
        for turn in range(block.count):
            codes[:, turn : turn + 1] = pen.scan(codes, hidden, turn, decoding.refresh, sampler)
            hidden[:, turn] = False
        return codes
    order = _ranks(block, decoding, sampler).argsort(dim=1)
    for start, stop in zip([0, *stops], stops, strict=False):
        turn_of = order[:, start:stop].sort(dim=1).values  # those whose turn it is, (R, m)
        drawn = pen.draw(codes, hidden, turn_of, sampler)
        codes = codes.scatter(1, turn_of, drawn)
        hidden = hidden.scatter(1, turn_of, False)
    return codes


def _ranks(block: Block, decoding: Decoding, sampler: Sampler) -> Tensor:
    """When each token of a block has its turn, in "random" or "halton" order: (R, n) int64 from 0."""
    if decoding.order == "random" or block.count == 1:
        return sampler.spread(sampler.uniform(block.count).argsort(dim=1).argsort(dim=1))
    # The sequence is moved across the grid, which it wraps around, by a shift of each row.
    t, h, w = block.grid
    order = torch.tensor(halton_order(block.grid), device=sampler.device)
    shift = (sampler.uniform(3) * torch.tensor(block.grid, device=sampler.device)).long()
    cells = [
        (part[None] + shift[:, i : i + 1]) % n
        for i, (part, n) in enumerate(zip(_unravel(order, block.grid), block.grid, strict=True))
    ]
    moved = (cells[0] * h + cells[1]) * w + cells[2]
    rank = torch.zeros_like(moved).scatter(1, moved, torch.arange(block.count, device=moved.device).expand_as(moved))
    return sampler.spread(rank)


def _unravel(flat: Tensor, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    return flat // (grid[1] * grid[2]), flat // grid[2] % grid[1], flat % grid[2]


def _read(lm: PyramidLM, sentence: str, which: str) -> list[int]:
    ids = lm.text_ids(sentence)
    if len(ids) > lm.config.max_text:
        _warn(f"{which} has {len(ids)} tokens, the first {lm.config.max_text} are read", stacklevel=7)
    return ids[: lm.config.max_text]


def _warn(what: str, stacklevel: int = 5) -> None:
    """At the line that called `PyramidLM.generate`: beyond write, generate and inference_mode's own frame."""
    warnings.warn(f"PyramidLM.generate: {what}", TextWarning, stacklevel=stacklevel)


def _shape(
    lm: PyramidLM, condition: Condition, num_frames: int | None, size: tuple[int, int] | None
) -> tuple[int, tuple[int, int]]:
    """Frames and pixel size: as asked for, else of the condition, else those the tokenizer was trained on."""
    c, tokens = lm.tokenizer.config, condition.tokens
    settled = condition.shape or (c.num_frames, *(c.size if tokens is None else (tokens.height, tokens.width)))
    num_frames = settled[0] if num_frames is None else num_frames
    size = settled[1:] if size is None else size
    if min(num_frames, *size) < 1:
        raise ValueError(
            "PyramidLM.generate: num_frames and both sides of size must be at least 1, got "
            f"{num_frames} and {size[0]}x{size[1]}"
        )
    return num_frames, size


def _check_fits(
    condition: Condition, batch: int, num_frames: int, size: tuple[int, int], chunk_frames: int, num_chunks: int
) -> None:
    for name, given in (("tokens", condition.tokens), ("draft", condition.draft), ("hint", condition.hint)):
        if given is None:
            continue
        found = (given.batch_size, (given.height, given.width))
        if found != (batch, size) or given.num_chunks > num_chunks:
            raise ValueError(
                f"PyramidLM.generate: condition: {name}: expected {batch} clips of {size[0]}x{size[1]} and at most "
                f"{num_chunks} chunks, got {given.batch_size} of {given.height}x{given.width} and {given.num_chunks}"
            )
        if name != "tokens" and given.num_frames != num_frames:
            raise ValueError(
                f"PyramidLM.generate: condition: {name}: expected {num_frames} frames, got {given.num_frames}"
            )
    given = condition.tokens
    if given is not None and given.num_frames != num_frames and (given.num_frames - 1) % chunk_frames:
        raise ValueError(
            f"PyramidLM.generate: condition: tokens: expected whole chunks, 1 frame or that and a multiple of "
            f"{chunk_frames}, before frames that are to be written, got {given.num_frames} frames of {num_frames}"
        )


DECODING_FIELDS = tuple(field.name for field in fields(Decoding))
