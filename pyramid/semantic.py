"""The semantic objective as the config puts it together: a teacher, a loss on the word levels, a weight.

semantic.objective=set semantic.teacher=caption        # the default: docs/experiments.md says why
semantic.objective=independent semantic.teacher=clip semantic.model=FOLDER semantic.dynamic=true     # SPAE's
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pyramid.losses import average_match_loss, coverage, independent_word_loss, word_phrase_loss, word_set_loss
from pyramid.ops import nearest_code
from pyramid.teachers import ClipTeacher, Teacher, TextTeacher
from pyramid.teachers.base import Batch
from pyramid.text_encoder import TextEncoder
from pyramid.words import WordTable

Objective = Literal["set", "phrases", "independent", "average", "set+average"]
TeacherName = Literal["caption", "label", "clip"]


@dataclass(frozen=True)
class SemanticConfig:
    """`objective`: see `losses.py`; "phrases" takes the words from one article to the next for a phrase; "set+average"
    adds the average with weight `average`. `teacher`: "caption", "label" (the names of classes) or "clip". `model`:
    folder or hub id, of the CLIP model, or of the text model that places captions and labels (the one that the word
    table was made with; without it a text is the mean of its words). `ignore`: words that are never asked for, such as
    those that all captions have. `class_words`: a JSON file of words that each class (the batch's "label") is told by
    besides, {"label": ["word", ...]}, for classes whose names say nothing of how they look; `pyramid data classes`
    writes one.
    `thresholds` of the scores, one a word level, the last for all beyond (SPAE's, coarse first). `temperature` of the
    word probabilities, `contrast` of the average's logits. `prompt`: what CLIP is told for a word. `dynamic`: the
    weight follows the other terms (`dynamic_weight`)."""

    objective: Objective = "set"
    teacher: TeacherName = "caption"
    model: str | None = None
    ignore: tuple[str, ...] = ()
    class_words: str | None = None
    thresholds: tuple[float, ...] = (0.98, 0.95, 0.9, 0.85, 0.8)
    temperature: float = 0.1
    average: float = 0.3
    contrast: float = 0.1
    prompt: str = "a photo of a {}"
    dynamic: bool = False

    def __post_init__(self) -> None:
        for name, wanted, good in (
            ("objective", " or ".join(get_args(Objective)), self.objective in get_args(Objective)),
            ("teacher", " or ".join(get_args(TeacherName)), self.teacher in get_args(TeacherName)),
            ("model", "the CLIP model's folder or hub id", self.teacher != "clip" or bool(self.model)),
            ("thresholds", "one or more from above 0 to 1", _are_shares(self.thresholds)),
            ("teacher", "caption or label for phrases", self.objective != "phrases" or self.teacher != "clip"),
            ("temperature", "above 0", self.temperature > 0),
            ("contrast", "above 0", self.contrast > 0),
            ("average", "at least 0", self.average >= 0),
        ):
            if not good:
                raise ValueError(f"SemanticConfig: {name} must be {wanted}, got {getattr(self, name)!r}")


def _are_shares(values: Sequence[float]) -> bool:
    return bool(values) and all(0 < value <= 1 for value in values)


class Lesson(NamedTuple):
    """What the teacher says of one batch: `sets`, the words of each clip; `vectors` (B, S), the clips in its space;
    `phrases`, the words of each of its phrases, where these are asked for."""

    sets: list[list[int]]
    vectors: Tensor
    phrases: list[list[list[int]]] | None = None


class SemanticObjective:
    """A teacher and a loss over the words of `table`. Has no weights of its own."""

    def __init__(self, config: SemanticConfig, table: WordTable) -> None:
        self.config = config
        self.teacher = make_teacher(config, table)
        ids = {word: index for index, word in enumerate(table.words)}
        self.ignored = {ids[word] for word in config.ignore if word in ids}
        self.class_words = load_class_words(config.class_words, ids) if config.class_words else {}

    def to(self, device: torch.device) -> SemanticObjective:
        self.teacher.to(device)
        return self

    def lesson(self, batch: Batch, num_positions: int) -> Lesson:
        """What the word positions of a chunk, so many, are to say of each clip."""
        vectors = self.teacher.embed(batch)
        sets = self.teacher.word_sets(batch, num_positions + len(self.ignored), vectors)
        labels = batch.get("label") if self.class_words else None
        own = [self.class_words.get(label, []) for label in labels] if labels else [[] for _ in sets]
        kept = [[word for word in words if word not in self.ignored] for words in sets]
        kept = [(words + more)[:num_positions] for words, more in zip(kept, own, strict=True)]
        if self.config.objective != "phrases":
            return Lesson(kept, vectors)
        phrases = [
            [[word for word in phrase if word not in self.ignored] for phrase in clip] + [more]
            for clip, more in zip(self.teacher.phrases(batch), own, strict=True)
        ]
        return Lesson(kept, vectors, phrases)

    def __call__(
        self, queries: Sequence[Tensor], embeddings: Tensor, lesson: Lesson, frames: Tensor
    ) -> tuple[Tensor, float]:
        """The loss of one chunk, scalar, and the share of the lesson's words that its positions name.

        queries[l] (B, t, h, w, E): inputs of the quantizers of word level l; embeddings (K, E): the word table; frames
        (B, 3, t', H, W): the chunk's pixels, which a teacher of regions looks at.
        """
        c = self.config
        flat = torch.cat([query.float().flatten(1, 3) for query in queries], dim=1)
        hit = coverage(nearest_code(flat.detach(), embeddings).ids, lesson.sets)
        if c.objective == "independent":
            scores = [self._scores(query.shape[1:4], lesson, frames) for query in queries]
            return independent_word_loss(queries, scores, embeddings, c.thresholds, c.temperature), hit
        if c.objective == "phrases":
            assert lesson.phrases is not None
            groups = position_groups([query.shape[1:4] for query in queries])
            return word_phrase_loss(flat, lesson.phrases, embeddings, c.temperature, groups), hit
        loss = flat.new_zeros(())
        if c.objective in ("set", "set+average"):
            loss = loss + word_set_loss(flat, lesson.sets, embeddings, c.temperature)
        if c.objective in ("average", "set+average"):
            words = self.teacher.words
            match = average_match_loss(queries, lesson.vectors, words, embeddings, c.temperature, c.contrast)
            loss = loss + (c.average if c.objective == "set+average" else 1.0) * match
        return loss, hit

    def _scores(self, grid: torch.Size, lesson: Lesson, frames: Tensor) -> Tensor:
        """(B, K) of the whole clip, or of each region where the level has several and the teacher knows of them."""
        regions = self.teacher.regions(frames, grid) if grid.numel() > 1 else None
        return self.teacher.scores(lesson.vectors if regions is None else regions)


def position_groups(grids: Sequence[Sequence[int]]) -> list[range]:
    """The word positions of a chunk that say a phrase together: the cells of one level at one time, if more than one.
    `grids` (t, h, w) of the word levels, coarse first."""
    groups, start = [], 0
    for t, h, w in grids:
        for _ in range(t):
            if h * w > 1:
                groups.append(range(start, start + h * w))
            start += h * w
    return groups


def load_class_words(path: str | Path, ids: Mapping[str, int]) -> dict[str, list[int]]:
    """The words of each class as ids. Raises FileNotFoundError, or ValueError for a file of another form, or a word
    that the table lacks."""
    try:
        classes = json.loads(Path(path).read_text(encoding="utf8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected JSON of the words of each class, got {error}") from None
    if not isinstance(classes, dict) or not all(isinstance(words, list) for words in classes.values()):
        raise ValueError(f'{path}: expected {{"label": ["word", ...], ...}}, got something else')
    unknown = sorted({str(word) for words in classes.values() for word in words if word not in ids})
    if unknown:
        raise ValueError(f"{path}: expected words of the table, got {len(unknown)} others, such as {unknown[0]!r}")
    return {label: [ids[word] for word in words] for label, words in classes.items()}


def make_teacher(config: SemanticConfig, table: WordTable) -> Teacher:
    """The teacher that a config names. Raises FileNotFoundError or ValueError where its model does not serve."""
    if config.teacher == "clip":
        return ClipTeacher(table, str(config.model), prompt=config.prompt)
    return TextTeacher(table, config.teacher, TextEncoder(config.model) if config.model else None)


def dynamic_weight(appearance: Tensor, semantic: Tensor) -> Tensor:
    """The ratio of two losses without gradient, so that weight x semantic is always as large as `appearance` (SPAE's
    dynamic weight, 2306.17842, section 3.2); zero where there is no semantic loss."""
    ratio = appearance.detach() / semantic.detach().clamp_min(1e-6)
    return torch.where(semantic.detach() > 0, ratio, 0.0)
