"""The one interface of all teachers: which words say what a clip shows, and how well.

A teacher knows a space with a vector for each word of the table and one for each clip, and the rest follows: a word's
score is the cosine of the two, min-max scaled per clip, SPAE's relative score (2306.17842, section 3.2); the words that
say a clip *together* come from matching pursuit, with words said barred. Teachers are frozen and take no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# A batch is what `pyramid.data.datamodule.collate_clips` makes: "video" (B, 3, T, H, W), "caption", "label", ...
Batch = dict[str, Any]


class Teacher:
    """`words` (K, S) float32: a unit vector for each word of the table, in the order of its ids."""

    words: Tensor

    def to(self, device: torch.device) -> Teacher:
        self.words = self.words.to(device)
        return self

    def embed(self, batch: Batch) -> Tensor:
        """The clips of a batch in the teacher's space, (B, S) of unit length; zero for a clip that it cannot place.
        Raises ValueError for a batch without what it reads."""
        raise NotImplementedError

    def regions(self, video: Tensor, grid: Sequence[int]) -> Tensor | None:
        """Each region of one chunk's frames (B, 3, t', H, W) in the teacher's space, (B, t, h, w, S) for a grid
        (t, h, w); None from a teacher that knows whole clips alone."""
        return None

    def scores(self, vectors: Tensor) -> Tensor:
        """Vectors (..., S) of clips or regions -> the score of each word, (..., K) from 0 to 1, 1 for the best; all
        zero where the vector is."""
        return min_max(vectors @ self.words.T)

    def word_sets(self, batch: Batch, count: int, vectors: Tensor | None = None) -> list[list[int]]:
        """For each clip the ids of at most `count` different words that say it together, the weightiest first. What all
        words have in common (much, in CLIP's space) says nothing, and is left out. `vectors`: what `embed` gave of the
        batch, where it is at hand."""
        atoms = torch.nn.functional.normalize(self.words - self.words.mean(dim=0), dim=-1)
        return [
            matching_pursuit(vector, atoms, count) for vector in (self.embed(batch) if vectors is None else vectors)
        ]

    def phrases(self, batch: Batch) -> list[list[list[int]]]:
        """For each clip its phrases, each the ids of words that belong together, in their order; of a teacher that
        reads sentences."""
        raise NotImplementedError


def min_max(scores: Tensor) -> Tensor:
    """Scaled to [0, 1] over the last axis: (s - min) / (max - min); zero where all are equal."""
    low, high = scores.amin(dim=-1, keepdim=True), scores.amax(dim=-1, keepdim=True)
    return torch.where(high > low, (scores - low) / (high - low).clamp_min(1e-12), 0.0)


def matching_pursuit(target: Tensor, words: Tensor, count: int) -> list[int]:
    """Rows of unit vectors `words` (K, S) whose positive multiples add up to `target` (S,), greedily (Mallat and Zhang,
    "Matching Pursuits with Time-Frequency Dictionaries", 1993): each is the row that the rest of the target points to
    most, its part is taken from the rest, and it is not taken again. Stops at `count`, or where no row takes part."""
    chosen: list[int] = []
    rest, barred = target.clone(), torch.zeros(len(words), dtype=torch.bool, device=words.device)
    while len(chosen) < min(count, len(words)):
        along = (words @ rest).masked_fill(barred, -torch.inf)
        best = int(along.argmax())
        if not float(along[best]) > 1e-6:
            break
        chosen.append(best)
        barred[best] = True
        rest = rest - along[best] * words[best]
    return chosen
