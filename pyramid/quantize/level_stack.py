"""A pyramid of quantized levels over the latent of one chunk: what every way of combining levels shares.

    latent -> target of level 1 -> query -> code -> cell of the latent -+-> latent at detail 1
              target of level 2 <- what is said so far <----------------+-> latent at detail 2 ...

A *combination* says what a level is asked for (`_query`) and what the first k levels say together (`_prefix`):
`residual.py` sums them (VAR), `average.py` takes their streaming average (SPAE). Every level has a codebook of its own
kind: words on the coarse levels, bits on the fine ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pyramid.levels import Level, Pyramid
from pyramid.quantize.base import Quantizer
from pyramid.quantize.bits import BitQuantizer
from pyramid.quantize.fsq import FSQQuantizer
from pyramid.quantize.vq import VectorQuantizer
from pyramid.quantize.words import WordQuantizer
from pyramid.words import WordTable

# Shapes: B batch, D latent, E code space, T H W latent grid, t h w level grid.

Codebook = Literal["words", "bits", "fsq", "vq"]


@dataclass(frozen=True)
class LevelConfig:
    """One level: its codebook, and its grid for a latent chunk of the reference size (it scales with the latent).

    `bits` counts for codebook "bits", `fsq_levels` for "fsq", `codebook_size` and `code_dim` for "vq"; a "words"
    level takes the tokenizer's word table. Raises ValueError for values that no level can have.
    """

    codebook: Codebook = "bits"
    t: int = 1
    h: int = 1
    w: int = 1
    bits: int = 10
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    codebook_size: int = 1024
    code_dim: int = 16

    def __post_init__(self) -> None:
        for name, wanted, good in (
            ("codebook", "'words', 'bits', 'fsq' or 'vq'", self.codebook in get_args(Codebook)),
            ("t", "at least 1", self.t >= 1),
            ("h", "at least 1", self.h >= 1),
            ("w", "at least 1", self.w >= 1),
            ("bits", "from 1 to 62", 1 <= self.bits <= 62),
            ("fsq_levels", "one or more numbers of at least 3", min(self.fsq_levels, default=0) >= 3),
            ("codebook_size", "at least 2", self.codebook_size >= 2),
            ("code_dim", "at least 1", self.code_dim >= 1),
        ):
            if not good:
                raise ValueError(f"LevelConfig: {name} must be {wanted}, got {getattr(self, name)!r}")


@dataclass(frozen=True, eq=False)
class QuantizedChunk:
    """One chunk through the pyramid. `latent` (B, D, T, H, W): what came in; `prefixes[l]`, same shape: the latent at
    detail l + 1; `ids[l]` int64 (B, t, h, w); `queries[l]` (B, t, h, w, E): the input of the level's quantizer;
    `losses[l]`: scalars."""

    latent: Tensor
    prefixes: list[Tensor]
    ids: list[Tensor]
    queries: list[Tensor]
    losses: list[Tensor]


def make_quantizer(config: LevelConfig, table: WordTable | None) -> Quantizer:
    if config.codebook == "words":
        if table is None:
            raise ValueError("make_quantizer: a level of words needs a word table, got none")
        return WordQuantizer(table)
    if config.codebook == "bits":
        return BitQuantizer(config.bits)
    if config.codebook == "fsq":
        return FSQQuantizer(config.fsq_levels)
    return VectorQuantizer(config.codebook_size, config.code_dim)


class QuantizedLevel(nn.Module):
    """A quantizer with its trained projections from and to the latent; `given`: its input comes from elsewhere."""

    def __init__(self, config: LevelConfig, latent_dim: int, table: WordTable | None, given: bool = False) -> None:
        super().__init__()
        self.quantizer = make_quantizer(config, table)
        dim = self.quantizer.dim
        self.given = given
        if given:
            self.before_pool = self.project_in = None
        elif config.codebook == "words":
            # Meaning is no linear function of a residual; the mixing happens before pooling.
            self.before_pool = nn.Sequential(nn.Linear(latent_dim, 4 * latent_dim), nn.GELU())
            self.project_in = nn.Linear(4 * latent_dim, dim)
        else:
            self.before_pool = nn.Identity()
            self.project_in = nn.Linear(latent_dim, dim)
        self.project_out = nn.Linear(dim, latent_dim)

    def cells(self, codes: Tensor) -> Tensor:
        """(B, t, h, w, E) -> (B, D, t, h, w), in the dtype of the weights"""
        return self.project_out(codes.to(self.project_out.weight.dtype)).movedim(-1, 1)


class PyramidQuantizer(nn.Module):
    """Levels over the latent of one chunk at a time. `reference`: the latent grid (t, h, w) of a chunk that the
    levels' grids were written for; `table`: the words of the word levels; `words_are_read`: these levels are given
    what they quantize, instead of taking it from the latent. Raises ValueError without levels."""

    def __init__(
        self,
        configs: Sequence[LevelConfig],
        latent_dim: int,
        reference: tuple[int, int, int],
        table: WordTable | None = None,
        *,
        words_are_read: bool = False,
    ) -> None:
        super().__init__()
        if not configs:
            raise ValueError(f"{type(self).__name__}: expected at least one level, got none")
        self.configs, self.latent_dim, self.reference = tuple(configs), latent_dim, reference
        self.levels = nn.ModuleList(
            QuantizedLevel(config, latent_dim, table, given=words_are_read and config.codebook == "words")
            for config in configs
        )

    # What a combination defines. Its state over the levels so far is a value that belongs to it alone.

    def _start(self, latent: Tensor) -> Any:
        """The state before the first level, for a latent (B, D, T, H, W)."""
        raise NotImplementedError

    def _query(self, part: QuantizedLevel, state: Any, level: Level) -> Tensor:
        """What the next level's quantizer is asked for, (B, t, h, w, E)."""
        raise NotImplementedError

    def _add(self, state: Any, cells: Tensor) -> Any:
        """The state with the cells (B, D, t, h, w) of one level more."""
        raise NotImplementedError

    def _prefix(self, state: Any) -> Tensor:
        """The latent (B, D, T, H, W) that the levels so far stand for."""
        raise NotImplementedError

    def combine(self, cells: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
        """Cells (B, D, t, h, w) of the first k levels, k >= 1 -> the latent at detail k, (B, D, *grid)."""
        raise NotImplementedError

    def pyramid(self, grid: Sequence[int]) -> Pyramid:
        """Geometry for a chunk whose latent has this grid (t, h, w)."""
        return Pyramid(tuple(Level(c.t, c.h, c.w).at(grid, self.reference) for c in self.configs))

    def forward(self, latent: Tensor, detail: int | None = None, words: Sequence[Tensor] = ()) -> QuantizedChunk:
        """latent (B, D, T, H, W) of one chunk -> its first `detail` levels (all by default). `words`: what was read,
        (B, t, h, w, E) for each word level, where words are read."""
        state, read = self._start(latent), iter(words)
        prefixes, ids, queries, losses = [], [], [], []
        for level, part in list(zip(self.pyramid(latent.shape[2:]).levels, self.levels, strict=True))[:detail]:
            query = next(read) if part.given else self._query(part, state, level)
            quantized = part.quantizer.quantize(query)
            state = self._add(state, part.cells(quantized.codes))
            prefixes.append(self._prefix(state))
            ids.append(quantized.ids)
            queries.append(query)
            losses.append(quantized.loss)
        return QuantizedChunk(latent, prefixes, ids, queries, losses)

    def decode(self, ids: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
        """Ids of the first k levels, int64 (B, t, h, w) each -> the latent at detail k, (B, D, T, H, W).

        Raises ValueError for ids that this pyramid does not give for this latent grid.
        """
        pyramid = self.pyramid(grid)
        self._check_ids(ids, pyramid)
        cells = [part.cells(part.quantizer.ids_to_codes(i)) for i, part in zip(ids, self.levels, strict=False)]
        return self.combine(cells, grid)

    @torch.no_grad()
    def answer(self, latent: Tensor, cells: Sequence[Tensor]) -> Tensor:
        """What the next level would say of a latent (B, D, T, H, W) of which the first levels have said `cells`, (B, D,
        t, h, w) each: ids (B, t, h, w). Raises ValueError for a level that is given its input."""
        index = len(cells)
        part, state = self.levels[index], self._start(latent)
        if part.given:
            raise ValueError(
                f"{type(self).__name__}.answer: level {index + 1} is given what it says, and asks no latent"
            )
        for level in cells:
            state = self._add(state, level)
        query = self._query(part, state, self.pyramid(latent.shape[2:]).levels[index])
        return part.quantizer.quantize(query).ids

    @torch.no_grad()
    def requantize(
        self, ids: Sequence[Tensor], grid: Sequence[int], disturb: Callable[[int, Tensor], Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What each level would have to say after mistakes on the levels before it (Infinity, 2412.04431, section 3.3):
        ids of all levels of one chunk, (B, t, h, w) -> ids with mistakes, and the right ids that follow on them.

        disturb: index of a level and its right ids -> ids, of the same shape; where it changes nothing on any level of
        a clip, the clip's ids come back as they are. Levels that are given their input (words) repair nothing.
        """
        latent = self.decode(ids, grid)
        state, wrong, right = self._start(latent), [], []
        touched = torch.zeros(len(latent), dtype=torch.bool, device=latent.device)
        for index, (level, part) in enumerate(zip(self.pyramid(grid).levels, self.levels, strict=True)):
            wanted = ids[index]
            if not part.given:
                repaired = part.quantizer.quantize(self._query(part, state, level)).ids
                wanted = torch.where(touched[:, None, None, None], repaired, wanted)
            said = disturb(index, wanted)
            touched = touched | (said != wanted).flatten(1).any(dim=1)
            state = self._add(state, part.cells(part.quantizer.ids_to_codes(said)))
            wrong.append(said)
            right.append(wanted)
        return wrong, right

    def _check_ids(self, ids: Sequence[Tensor], pyramid: Pyramid) -> None:
        who = f"{type(self).__name__}.decode"
        if not 1 <= len(ids) <= pyramid.num_levels:
            raise ValueError(f"{who}: expected 1 to {pyramid.num_levels} levels, got {len(ids)}")
        for k, (code, level, part) in enumerate(zip(ids, pyramid.levels, self.levels, strict=False), start=1):
            shape, size = (len(ids[0]), *level.grid), part.quantizer.codebook_size
            if code.dtype != torch.int64 or tuple(code.shape) != shape:
                found = f"{code.dtype} {tuple(code.shape)}"
                raise ValueError(f"{who}: level {k}: expected ids int64 {shape}, got {found}")
            low, high = torch.stack(code.aminmax()).tolist() if code.numel() else (0, 0)
            if low < 0 or high >= size:
                raise ValueError(f"{who}: level {k}: expected ids from 0 to {size - 1}, got {low} to {high}")
