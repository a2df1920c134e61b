"""Small networks that tell the classes of clips, for `evaluate understanding`: `CodeClassifier` from the codes of the
first levels, `PixelClassifier` from pixels. Both have about as many parameters, learn for as long from the same clips,
and answer several questions at once (targets: alphabet, character, ...).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyramid.levels import Pyramid
from pyramid.tokenizer import PyramidTokenizer
from pyramid.tokens import TokenPyramid
from tasks.judging import Learner, native_bf16

# Shapes: B clips, S positions, C the width; logits of a target (B, its classes).

MAX_SIDE = 4  # positions of a level along height and width; finer codes are read several at once
_BATCH = 64
_SMOOTHING = 0.1  # of the labels
_SKIPPED = 0.15  # of the chunks in training, so that one alone can be read


class _Heads(nn.Module):
    """Logits of every target from a vector."""

    def __init__(self, dim: int, targets: Mapping[str, int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleDict({name: nn.Linear(dim, count) for name, count in targets.items()})

    def forward(self, vector: Tensor) -> dict[str, Tensor]:
        vector = self.norm(vector.float())
        return {name: head(vector) for name, head in self.heads.items()}


class CodeClassifier(nn.Module):
    """A transformer over the codes of the first `detail` levels of a clip's chunks. `targets`: classes of each."""

    def __init__(
        self,
        tokenizer: PyramidTokenizer,
        num_frames: int,
        detail: int,
        targets: Mapping[str, int],
        dim: int = 128,
        depth: int = 3,
    ) -> None:
        super().__init__()
        self.pyramids = [pyramid.prefix(detail) for pyramid in tokenizer.pyramids(num_frames)]
        levels: Any = tokenizer.levels.levels
        self.quantizers = [copy.deepcopy(levels[level].quantizer).cpu() for level in range(detail)]
        self.shape = {"num_frames": num_frames, "height": tokenizer.config.height, "width": tokenizer.config.width}
        sides = [self._merged(level.h, level.w) for level in self.pyramids[-1].levels]
        self.project = nn.ModuleList(
            nn.Linear(quantizer.dim * side * side, dim) for quantizer, side in zip(self.quantizers, sides, strict=True)
        )
        self.sides = sides
        grids = [self._grids(pyramid) for pyramid in self.pyramids]
        counts = [sum(math.prod(grid) for grid in dict.fromkeys(chunk)) for chunk in grids]
        self.chunk = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))  # of each position
        self.places = nn.Parameter(0.02 * torch.randn(sum(counts), dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.1, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.heads = _Heads(dim, targets)

    def _grids(self, pyramid: Pyramid) -> list[tuple[int, int, int]]:
        """Of each level, once codes are read several at once. Levels with the same grid share its positions."""
        return [
            (level.t, -(-level.h // side), -(-level.w // side))
            for level, side in zip(pyramid.levels, self.sides, strict=True)
        ]

    @staticmethod
    def _merged(height: int, width: int) -> int:
        return max(1, -(-max(height, width) // MAX_SIDE)) if min(height, width) > MAX_SIDE else 1

    def vectors(self, ids: Tensor, chunks: Sequence[int] | None = None) -> Tensor:
        """What the classes are told by, (B, C), of flat ids (B, tokens) of the first levels, int64; of some of the
        chunks alone where they are given."""
        tokens = TokenPyramid.unflatten(ids, self.pyramids, **self.shape)
        parts: list[Tensor] = []
        for levels, pyramid in zip(tokens.ids, self.pyramids, strict=True):
            known: dict[tuple[int, int, int], Tensor] = {}
            for level, (codes, grid) in enumerate(zip(levels, self._grids(pyramid), strict=True)):
                with torch.no_grad():
                    values = self.quantizers[level].ids_to_codes(codes).float()
                read = self.project[level](_blocks(values, self.sides[level]))
                known[grid] = known[grid] + read if grid in known else read
            parts += known.values()
        x = torch.cat(parts, dim=1) + self.places
        if chunks is not None:
            kept = torch.isin(self.chunk, torch.tensor(list(chunks)))
            x = x[:, kept]
        elif self.training:
            x = x[:, self._drawn()]
        return self.body(x).mean(dim=1)

    def _drawn(self) -> Tensor:
        """The positions of some chunks, the last among them."""
        skip = torch.rand(len(self.pyramids)) < _SKIPPED
        skip[-1] = False
        return (~skip)[self.chunk]

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        return self.heads(self.vectors(ids))


def _blocks(codes: Tensor, side: int) -> Tensor:
    """(B, t, h, w, E) -> (B, t h' w', side side E): `side` x `side` codes as one, zeros beyond the rim."""
    if side == 1:
        return codes.flatten(1, 3)
    codes = nn.functional.pad(codes, (0, 0, 0, -codes.shape[3] % side, 0, -codes.shape[2] % side))
    codes = codes.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # B t h' side w' side E
    return codes.transpose(3, 4).flatten(4).flatten(1, 3)


class PixelClassifier(nn.Module):
    """A 3-D CNN over whole clips, uint8 (B, 3, T, H, W): space is halved four times, time twice; then the mean of
    all, and the most of the end."""

    def __init__(self, targets: Mapping[str, int], widths: Sequence[int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for index, width in enumerate(widths):
            stride = (1 + index % 2, 2, 2)
            layers += [nn.Conv3d(before, width, 3, stride, padding=1), nn.GroupNorm(8, width), nn.GELU()]
            layers += [nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1)), nn.GroupNorm(8, width), nn.GELU()]
            before = width
        self.pixels = nn.Sequential(*layers)
        self.mix = nn.Sequential(nn.Linear(2 * before, 128), nn.GELU())
        self.heads = _Heads(128, targets)

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        x = self.pixels(clips.float() / 127.5 - 1)
        return self.heads(self.mix(torch.cat([x.mean(dim=(2, 3, 4)), x[:, :, -1].amax(dim=(2, 3))], dim=1)))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A network after `fit`, and what came of it: `steps`, and accuracy by target, and of all of them together, on the
    clips it was not fitted on that have a class; no entry where none has."""

    model: nn.Module
    steps: int
    accuracy: dict[str, float]
    clips_a_second: float


def fit(
    make: Callable[[], nn.Module],
    train: tuple[Tensor, Mapping[str, Tensor]],
    test: tuple[Tensor, Mapping[str, Tensor]],
    *,
    minutes: float,
    seed: int = 0,
    told: Callable[[float], None] = lambda progress: None,
) -> Fitted:
    """Fit what `make` gives for so many minutes, cross-entropies of all targets summed. Inputs (N, ...) and targets
    (N,) int64, -1 for none; of `test` those without a class are not counted."""
    torch.manual_seed(seed)
    model = make()
    inputs, targets = train
    learner = Learner(model, minutes)
    for _ in learner.steps():
        rows = torch.randint(len(inputs), (_BATCH,))
        with native_bf16():
            logits = model(inputs[rows])
        losses = [
            nn.functional.cross_entropy(logits[name].float(), values[rows], ignore_index=-1, label_smoothing=_SMOOTHING)
            for name, values in targets.items()
        ]
        learner.learn(torch.stack(losses).nan_to_num().sum())
        told(learner.progress)
    model.eval()
    begin = time.perf_counter()
    with torch.inference_mode():
        said = [{name: part.argmax(dim=1) for name, part in model(rows).items()} for rows in test[0].split(_BATCH)]
    seconds = time.perf_counter() - begin
    accuracy, together = {}, torch.ones(len(test[0]), dtype=torch.bool)
    known = torch.stack([values >= 0 for values in test[1].values()]).all(dim=0)
    for name, values in test[1].items():
        right = torch.cat([part[name] for part in said]) == values
        if (values >= 0).any():
            accuracy[name] = float(right[values >= 0].float().mean())
        together &= right
    if len(test[1]) > 1 and known.any():
        accuracy["all"] = float(together[known].float().mean())
    return Fitted(model, learner.num_steps, accuracy, len(test[0]) / seconds)
