"""What each step of a training run is about: one group of like clips a step, so that nothing is padded (alternating
task groups, VideoPoet, 2312.14125, section 3.4), images before clips, coarse levels before fine ones.

A `Group` is a function of the seed, the step and the progress of the run, the same on all ranks; how many clips a step
has follows from how long they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.data import Sampler

from lm.conditions import READING, TASKS, hinted
from lm.layout import Block, blocks_of
from pyramid.levels import Pyramid

MOST_QUESTIONS = 12  # about one clip in a step, at most: they share its codes


@dataclass(frozen=True)
class MixConfig:
    """`tasks`: how often each task has a step, relative to the others; those that the model does not know or that the
    clips have nothing for have none. `images_first`: share of "generate" steps on first frames alone, as "image", in
    the first quarter of the run, `images_later` after it (VideoPoet: 90 and 10 %). `fine_until`: part of the run at
    which the last of the levels that are not remembered joins in; `fine_tokens`: of these levels' blocks as many are
    trained in a step, drawn at random, as have so many tokens together, one at least; of each further level half as
    many. `levels`: the only ones that are learned, from 1, all where there are none: for a run that mends some of them.

    `all_levels`: share of steps that write all levels, of the others the last one is random. `caption_default`: share
    of captions and answers read at `caption_detail`, the others at a random detail."""

    tasks: dict[str, float] = field(
        default_factory=lambda: {
            "generate": 5.0,
            "class": 1.0,
            "unconditional": 0.5,
            "animate": 1.0,
            "continue": 1.0,
            "interpolate": 0.7,
            "inpaint": 0.7,
            "outpaint": 0.7,
            "refine": 0.5,
            "upscale": 0.7,
            "stylize": 0.7,
            "caption": 2.0,
            "ask": 2.0,
        }
    )
    images_first: float = 0.9
    images_later: float = 0.1
    fine_until: float = 0.5
    fine_tokens: int = 256
    all_levels: float = 0.8
    caption_default: float = 0.8
    continued: float = 0.3
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        known = {*TASKS, *READING} - {"image"}
        for name, weight in self.tasks.items():
            if name not in known or not 0 <= weight < float("inf"):
                raise ValueError(f"tasks: expected weights of {', '.join(sorted(known))}, got {name}: {weight}")
        for name in ("images_first", "images_later", "fine_until", "all_levels", "caption_default", "continued"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        if any(level < 1 for level in self.levels):
            raise ValueError(f"levels: expected numbers from 1, got {self.levels}")
        if self.fine_tokens < 1:
            raise ValueError(f"fine_tokens: expected at least 1, got {self.fine_tokens}")


@dataclass(frozen=True)
class Group:
    """One step: the task, the chunks of a clip that it takes, the levels, the blocks (chunk, level) that are learned,
    and `given`: chunks that are known, or levels ("refine")."""

    task: str
    num_chunks: int
    detail: int
    blocks: frozenset[tuple[int, int]]
    given: int = 0
    tokens: int = 0

    def has(self, block: Block) -> bool:
        return (block.chunk, block.level) in self.blocks


@dataclass(frozen=True)
class Curriculum:
    """Draws groups for clips of this geometry. `tasks`: those that the model knows and the clips can teach; `memory`,
    `caption_detail`: of the model; `text`: about how many tokens a prompt has."""

    mix: MixConfig
    pyramids: tuple[Pyramid, ...]
    tasks: tuple[str, ...]
    memory: int
    caption_detail: int
    text: int

    def group(self, progress: float, generator: torch.Generator) -> Group:
        """That of a step, at this progress of the run."""
        names = [name for name in self.mix.tasks if name in self.tasks and self.mix.tasks[name] > 0]
        weights = torch.tensor([self.mix.tasks[name] for name in names])
        task = names[int(torch.multinomial(weights, 1, generator=generator))]
        draw = torch.rand(5, generator=generator).tolist()
        num_levels, num_chunks = self.pyramids[0].num_levels, len(self.pyramids)
        if task in READING:
            detail = self.caption_detail if draw[0] < self.mix.caption_default else 1 + int(draw[1] * num_levels)
            return self._sized(Group(task, num_chunks, detail, frozenset()))
        images = self.mix.images_first if progress < 0.25 else self.mix.images_later
        if task == "generate" and "image" in self.tasks and draw[2] < images:
            task, num_chunks = "image", 1
        given, first, coarse = 0, 0, 0
        if task in ("animate", "continue", "interpolate"):
            first = 1
        if task == "continue" or (task in hinted() and num_chunks > 1 and draw[4] < self.mix.continued):
            first = given = 1 + int(draw[3] * (num_chunks - 1))
        if task == "refine":
            coarse = given = 1 + int(draw[3] * (num_levels - 1))
        more = num_levels - self.memory - 1
        joined = self.memory + 1 + int(more * min(1.0, progress / max(self.mix.fine_until, 1e-9)) + 1e-9)
        detail = min(num_levels, max(joined, coarse + 1))
        if draw[0] >= self.mix.all_levels:
            detail = min(detail, coarse + 1 + int(draw[1] * (num_levels - coarse)))
        blocks = [
            block
            for block in blocks_of(self.pyramids[:num_chunks], detail, self.memory)
            if block.chunk >= first and block.level >= coarse
        ]
        if self.mix.levels:  # those of them that this step can learn, else whatever it can
            blocks = [block for block in blocks if block.level + 1 in self.mix.levels] or blocks
        picked = [block for block in blocks if block.remembered]
        fine = [block for block in blocks if not block.remembered]
        # Coarse ones among them matter more: each further level has its turn half as often.
        room, odds = self.mix.fine_tokens, torch.tensor([0.5 ** (block.level - self.memory) for block in fine])
        order = torch.multinomial(odds, len(fine), generator=generator).tolist() if fine else []
        for turn, index in enumerate(order):
            if turn == 0 or fine[index].count <= room:
                picked.append(fine[index])
                room -= fine[index].count
        return self._sized(Group(task, num_chunks, detail, frozenset((b.chunk, b.level) for b in picked), given))

    def _sized(self, group: Group) -> Group:
        """With the length of its sequences."""
        blocks = blocks_of(self.pyramids[: group.num_chunks], group.detail, self.memory)
        if group.task in READING:
            texts = MOST_QUESTIONS / 2 if group.task == "ask" else 1  # questions are shorter than captions
            count = 2 + sum(block.count for block in blocks) + round(texts * self.text)
        else:
            clean = sum(block.count for block in blocks if block.remembered)
            count = 2 + self.text + clean + sum(block.count for block in blocks if group.has(block))
        return Group(group.task, group.num_chunks, group.detail, group.blocks, group.given, count)

    def longest(self) -> int:
        """About the length of a step on all blocks that one may have."""
        blocks = blocks_of(self.pyramids, self.pyramids[0].num_levels, self.memory)
        clean = sum(block.count for block in blocks if block.remembered)
        fine = sum(block.count for block in blocks if not block.remembered)
        return 2 + self.text + 2 * clean + min(fine, max(self.mix.fine_tokens, 0))


class GroupBatches(Sampler[list[tuple[int, Group]]]):
    """Batches of (index, group), one group a batch, without end: as many clips as make `batch_size` of the longest
    kind. They depend on (seed, step, rank) and the run's progress alone; a new pass starts at the module's step.

    `hints`: for each clip the hinted task that it has, as an index of `hinted()`; None where there are none."""

    def __init__(self, module, size: int, hints: Sequence[int] | None, batch_size: int, rank: int = 0) -> None:
        self.module, self.size, self.batch_size, self.rank = module, size, batch_size, rank
        self.by_task: dict[str, torch.Tensor] = {}
        if hints is not None:
            tasks = torch.as_tensor(hints)
            self.by_task = {name: (tasks == index).nonzero().flatten() for index, name in enumerate(hinted())}

    def __iter__(self) -> Iterator[list[tuple[int, Group]]]:
        step = self.module.step
        curriculum: Curriculum = self.module.curriculum
        while True:
            group = self.module.group(step)
            count = max(1, self.batch_size * curriculum.longest() // group.tokens)
            numbers = torch.Generator().manual_seed(self.module.seed(step, self.rank))
            clips = self.by_task.get(group.task)
            draw = torch.randint(self.size if clips is None else len(clips), (count,), generator=numbers)
            chosen = draw if clips is None else clips[draw]
            yield [(index, group) for index in chosen.tolist()]
            step += 1
