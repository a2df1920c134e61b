"""The judge of generated handwriting: which of 242 characters of eight alphabets a clip of 64x64 ends with.

It reads the mean of the last two frames, whatever the ink and the paper. It knows nothing of tokens and shares no
weight with the models it judges. Its accuracy on drawers it never saw, and on reconstructions, is the ceiling for what
it says of samples: benchmarks/results/judges.txt.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid.data.ink import InkConfig, render_ink
from pyramid.data.omniglot import CANVAS, find_drawings, read_strokes
from pyramid.tokenizer import PyramidTokenizer
from tasks.judge import _worn
from tasks.judging import Convolution, Learner, load_weights, native_bf16, read_config, reconstruct, save_judge

SIZE = 64
FORMAT = "pyramid.writing_judge"
FIRST_DRAWN = 3872  # pictures before the first step of training: one of each drawing


class WritingJudge(nn.Module):
    """A picture, as it is and against its paper, down to 4x4 places, those to a vector, that to a character."""

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = list(labels)
        self.pixels = nn.Sequential(
            *(nn.Conv2d(6, 32, 5, stride=2, padding=2), nn.GELU(), Convolution(32)),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GELU(), Convolution(64), Convolution(64)),
            *(nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.GELU(), Convolution(128), Convolution(128)),
            *(nn.Conv2d(128, 160, 3, stride=2, padding=1), nn.GELU(), Convolution(160)),
        )
        self.vector = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(160 * (SIZE // 16) ** 2, 192), nn.GELU())
        self.character = nn.Sequential(nn.Dropout(0.2), nn.Linear(192, len(self.labels)))

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, 64, 64) in [-1, 1] -> logits (B, 242) and the features (B, 192) they are read from."""
        paper = picture[:, :, ::2, ::2].flatten(2).median(dim=2).values[..., None, None]
        views = torch.cat([picture, torch.tanh(2 * (picture - paper))], dim=1)
        vector = self.vector(self.pixels(views.contiguous(memory_format=torch.channels_last)))
        return self.character(vector).float(), vector.float()

    @torch.no_grad()
    def characters(self, video: Tensor, batch_size: int = 128) -> list[str]:
        """The character, such as "Greek/character23", that each clip of (B, 3, T, 64, 64) in [-1, 1] ends with; before
        the stroke is its alphabet. Raises ValueError for clips of another shape."""
        _check(video)
        pictures = video[:, :, -2:].mean(dim=2)
        best = torch.cat([self(part)[0].argmax(dim=1) for part in pictures.split(batch_size)])
        return [self.labels[index] for index in best.tolist()]

    @torch.no_grad()
    def features(self, video: Tensor, batch_size: int = 128) -> Tensor:
        """For `frechet_distance`, float32 (B, 192): the mean over four moments, each quarter's last frame, of what a
        character is read from, so that the writing counts. Raises ValueError for clips of another shape."""
        _check(video)
        moments = [round((video.shape[2] - 1) * quarter / 4) for quarter in (1, 2, 3, 4)]
        pictures = video[:, :, moments].transpose(1, 2).flatten(0, 1)
        vectors = torch.cat([self(part)[1] for part in pictures.split(batch_size)])
        return vectors.unflatten(0, (-1, len(moments))).mean(dim=1)

    def save(self, folder: str | Path) -> None:
        save_judge(self, folder, {"format": FORMAT, "labels": self.labels})

    @staticmethod
    def load(folder: str | Path) -> WritingJudge:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError for another format."""
        judge = WritingJudge(read_config(folder, FORMAT)["labels"])
        load_weights(judge, folder)
        return judge


def _check(video: Tensor) -> None:
    if video.dim() != 5 or video.shape[1] != 3 or tuple(video.shape[3:]) != (SIZE, SIZE):
        raise ValueError(f"WritingJudge: expected clips (B, 3, T, {SIZE}, {SIZE}), got {tuple(video.shape)}")


# ---------------------------------------------------------------------------------------------- training


class _Writers:
    """Finished characters by the drawers of the split `train`, each time with another hand, ink and paper."""

    def __init__(self, archives: Iterable[str | Path], seed: int) -> None:
        drawings = [drawing for drawing in find_drawings(archives)[0] if drawing.split == "train"]
        opened = {archive: zipfile.ZipFile(archive) for archive in {drawing.archive for drawing in drawings}}
        self.strokes = [read_strokes(opened[drawing.archive], drawing) for drawing in drawings]
        self.labels = sorted({drawing.label for drawing in drawings})
        self.truth = torch.tensor([self.labels.index(drawing.label) for drawing in drawings])
        self.rng = np.random.default_rng(seed)
        self.order: list[int] = []

    def take(self, count: int, num_frames: int = 1) -> tuple[Tensor, Tensor]:
        """Clips uint8 (count, 3, num_frames, 64, 64), which end with the finished character, and labels (count,)."""
        while len(self.order) < count:
            self.order += self.rng.permutation(len(self.strokes)).tolist()
        chosen, self.order = self.order[:count], self.order[count:]
        config = InkConfig(height=SIZE, width=SIZE, num_frames=num_frames)
        clips = [
            np.stack(list(render_ink(_another_hand(self.strokes[index], self.rng), config, self.rng)[1]))
            for index in chosen
        ]
        return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).contiguous(), self.truth[chosen]


def _another_hand(strokes: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """The drawing as it might be written another time: slanted, stretched and bent, each stroke a little elsewhere."""
    middle = CANVAS / 2
    slant = np.eye(2) + rng.normal(0, 0.09, (2, 2))
    waves = [(rng.normal(0, 1, 2), rng.normal(0, 1.2, 2), rng.uniform(0, 2 * np.pi, 2)) for _ in range(2)]
    out = []
    for stroke in strokes:
        xy = stroke[:, :2] - middle
        own = xy.mean(axis=0)
        xy = own + (xy - own) * (1 + rng.normal(0, 0.05, 2)) + rng.normal(0, 1.2, 2)
        bend = sum(size * np.sin((xy @ way)[:, None] * (2 * np.pi / 90) + phase) for way, size, phase in waves)
        out.append(np.concatenate([(xy + bend) @ slant + middle, stroke[:, 2:]], axis=1))
    return out


def _seen_elsewhere(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] moved, turned and stretched a little, in another light, worn as the judge of
    shapes has it."""
    count = len(pictures)
    turn = torch.eye(2) + torch.randn(count, 2, 2) * 0.05
    grid = F.affine_grid(
        torch.cat([turn, torch.randn(count, 2, 1) * 0.05], dim=2), list(pictures.shape), align_corners=False
    )
    moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    light = 1 + torch.randn(count, 3, 1, 1) * 0.06
    moved = ((moved + 1) * light - 1 + torch.randn(count, 1, 1, 1) * 0.06).clamp(-1, 1)
    return _worn(moved[:, :, None])[:, :, 0]


def train_writing_judge(
    out: str | Path,
    archives: Iterable[str | Path],
    tokenizer: PyramidTokenizer,
    *,
    minutes: float = 8.0,
    num_reconstructed: int = 720,
    seed: int = 0,
) -> None:
    """Train on the zips of timed strokes, drawers 1 to 16, a quarter of the pictures as `tokenizer` reconstructs them
    at one of its last three details; written to `out`."""
    torch.manual_seed(seed)
    writers = _Writers(archives, seed)
    details = range(tokenizer.num_levels - 2, tokenizer.num_levels + 1)
    coded: list[Tensor] = []
    coded_truth: list[Tensor] = []
    with native_bf16():
        for start in range(0, num_reconstructed, 48):
            clips, truth = writers.take(min(48, num_reconstructed - start), num_frames=17)
            coded.append(reconstruct(tokenizer, clips, details)[:, :, -2:].float().mean(dim=2).to(torch.uint8))
            coded_truth.append(truth)
    reconstructed, reconstructed_truth = torch.cat(coded), torch.cat(coded_truth)
    pictures = torch.empty(24_000, 3, SIZE, SIZE, dtype=torch.uint8)
    labels = torch.empty(len(pictures), dtype=torch.int64)
    drawn = 0
    judge = WritingJudge(writers.labels)
    learner = Learner(judge, minutes)
    for step in learner.steps():
        clips, truth = writers.take(24 if drawn else FIRST_DRAWN)
        at = torch.arange(drawn, drawn + len(clips)) % len(pictures)
        pictures[at], labels[at], drawn = clips[:, :, 0], truth, drawn + len(clips)
        old = torch.randint(min(drawn, len(pictures)), (72,))
        again = torch.randint(len(reconstructed), (32,))
        batch = torch.cat([pictures[at[:24]], pictures[old], reconstructed[again]])
        wanted = torch.cat([labels[at[:24]], labels[old], reconstructed_truth[again]])
        with native_bf16():
            logits, _ = judge(_seen_elsewhere(batch / 127.5 - 1))
        learner.learn(F.cross_entropy(logits, wanted, label_smoothing=0.05))
        if step % 100 == 0:
            right = (logits.argmax(dim=1) == wanted).float()
            print(
                f"writing judge: step {step}, {learner.schedule.progress(step):.0%}, right of new pictures "
                f"{right[:24].mean():.3f}, of all {right.mean():.3f}",
                flush=True,
            )
            judge.save(out)
    print(f"writing judge: {learner.num_steps} steps of 128 pictures, {drawn} drawn")
    judge.save(out)
