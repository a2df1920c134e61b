"""Features of real clips for a Fréchet distance, learned from the clips alone: robot arms of DROID.

Taught without labels: two windows of a clip, each cropped and lit in its own way, shall be more alike than windows of
other clips (SimCLR, Chen et al. 2020, 2002.05709), and more alike than the window run backwards; and a head tells
windows from those run backwards, so that motion counts. Trained on clips of one kind, so the distances are of use for
that kind. `python benchmarks/judges.py robot --folder FOLDER --train 10` makes such weights; those that ship have a
card.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid.data.video import iter_frames
from tasks.judge import _worn
from tasks.judging import Convolution, Learner, load_weights, native_bf16, read_config, save_judge

SIZE = (64, 112)
FPS = 10.0
WINDOW = 17
FORMAT = "pyramid.clip_features"


class ClipFeatures(nn.Module):
    """Every second frame, with its differences to the frame before and to the fourth before, down to a vector; those
    mixed over time, and their mean and what changes the most."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Sequential(
            *(nn.Conv2d(9, 48, 8, stride=4, padding=2), nn.GELU(), Convolution(48)),
            *(nn.Conv2d(48, 96, 3, stride=2, padding=1), nn.GELU(), Convolution(96), Convolution(96)),
            *(nn.Conv2d(96, 128, 3, stride=2, padding=1), nn.GELU(), Convolution(128)),
        )
        self.frame = nn.Sequential(nn.Linear(128 * 8, 128), nn.GELU())
        self.time = nn.Sequential(
            *(nn.Conv1d(128, 128, 3, padding=1), nn.GELU(), nn.Conv1d(128, 128, 3, padding=1), nn.GELU())
        )
        self.clip = nn.Linear(256, 128)
        self.project = nn.Sequential(nn.GELU(), nn.Linear(128, 64))
        self.backwards = nn.Sequential(nn.GELU(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 1))

    def forward(self, video: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) in [-1, 1], T >= 1, of any size (resized to 64x112) -> features, float (B, 128).

        Raises ValueError for anything else than such a clip."""
        if video.dim() != 5 or video.shape[1] != 3 or min(video.shape[2:]) < 1:
            raise ValueError(f"ClipFeatures: expected clips (B, 3, T, H, W), got {tuple(video.shape)}")
        clips = len(video)
        if tuple(video.shape[3:]) != SIZE:
            flat = F.interpolate(video.transpose(1, 2).flatten(0, 1).float(), SIZE, mode="bilinear", antialias=True)
            video = flat.unflatten(0, (clips, -1)).transpose(1, 2)
        index = torch.arange(0, video.shape[2], 2)
        now = video[:, :, index]
        before, earlier = (video[:, :, (index - lag).clamp(min=0)] for lag in (1, 4))
        frames = torch.cat([now, 2 * (now - before), now - earlier], dim=1).transpose(1, 2).flatten(0, 1)
        seen = self.frames(frames.contiguous(memory_format=torch.channels_last))
        each = self.frame(F.adaptive_avg_pool2d(seen, (2, 4)).flatten(1)).unflatten(0, (clips, -1))
        mixed = each.transpose(1, 2)
        mixed = mixed + self.time(mixed)
        return self.clip(torch.cat([mixed.mean(dim=2), mixed.amax(dim=2)], dim=1)).float()

    @torch.no_grad()
    def features(self, video: Tensor, batch_size: int = 32) -> Tensor:
        """As `forward`, some clips at a time: float32 (B, 128). Raises ValueError for another shape."""
        return torch.cat([self(part) for part in video.split(batch_size)])

    def save(self, folder: str | Path) -> None:
        save_judge(self, folder, {"format": FORMAT, "height": SIZE[0], "width": SIZE[1]})

    @staticmethod
    def load(folder: str | Path) -> ClipFeatures:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError for another format."""
        read_config(folder, FORMAT)
        network = ClipFeatures()
        load_weights(network, folder)
        return network


def read_whole(paths: Sequence[str | Path]) -> list[Tensor]:
    """Clips as uint8 (3, T, 64, 112), ten frames a second; those of fewer than 17 frames are left out."""
    clips = [
        torch.stack([torch.from_numpy(frame) for frame in iter_frames(path, fps=FPS, size=SIZE)]).permute(3, 0, 1, 2)
        for path in paths
    ]
    return [clip.contiguous() for clip in clips if clip.shape[1] >= WINDOW]


# ---------------------------------------------------------------------------------------------- training


def _windows(clips: Sequence[Tensor]) -> Tensor:
    """A window of each clip from a random place, (B, 3, 17, 64, 112) in [-1, 1]: cropped, lit and worn at random."""
    out = []
    for clip in clips:
        start = int(torch.randint(clip.shape[1] - WINDOW + 1, ()))
        share = 0.7 + 0.3 * torch.rand(()).item()
        height, width = round(SIZE[0] * share), round(SIZE[1] * share)
        top = int(torch.randint(SIZE[0] - height + 1, ()))
        left = int(torch.randint(SIZE[1] - width + 1, ()))
        window = clip[:, start : start + WINDOW, top : top + height, left : left + width]
        out.append(F.interpolate(window.transpose(0, 1).float(), SIZE, mode="bilinear").transpose(0, 1) / 127.5 - 1)
    video = torch.stack(out)
    grey = video.mean(dim=1, keepdim=True)
    shape = (len(video), 1, 1, 1, 1)
    video = torch.lerp(grey, video, 1 + 0.6 * (torch.rand(shape) - 0.5) - 0.8 * (torch.rand(shape) < 0.15))
    contrast = 1 + 0.5 * (torch.rand(shape) - 0.5)
    tint = 0.1 * torch.randn(len(video), 3, 1, 1, 1)
    return _worn((video * contrast + tint + 0.15 * torch.randn(shape)).clamp(-1, 1))


def _contrast(a: Tensor, b: Tensor, others: Tensor, temperature: float = 0.1) -> Tensor:
    """Row i of `a` finds row i of `b` among all rows of `b` and `others`."""
    a, b, others = (F.normalize(rows, dim=1) for rows in (a, b, others))
    return F.cross_entropy(a @ torch.cat([b, others]).T / temperature, torch.arange(len(a)))


def train_clip_features(out: str | Path, clips: Sequence[Tensor], *, minutes: float = 10.0, seed: int = 0) -> None:
    """Train on `clips`, as `read_whole` gives them; written to `out`."""
    torch.manual_seed(seed)
    network = ClipFeatures()
    learner = Learner(network, minutes)
    batch = min(32, len(clips))
    for step in learner.steps():
        chosen = [clips[index] for index in torch.randperm(len(clips))[:batch]]
        if step % 2:  # in a mirror it is another clip
            chosen = [clip.flip(-1) for clip in chosen]
        first, second = _windows(chosen), _windows(chosen)
        with native_bf16():
            found = network(torch.cat([first, second, first[: batch // 2].flip(2), second[batch // 2 :].flip(2)]))
            projected = network.project(found).float()
            logits = network.backwards(found).float()[:, 0]
        a, b, reversed_ = projected.split(batch)
        backwards = torch.arange(3 * batch) >= 2 * batch
        weight = torch.where(backwards, 2.0, 1.0)
        order = F.binary_cross_entropy_with_logits(logits, backwards.float(), weight)
        alike = (_contrast(a, b, reversed_) + _contrast(b, a, reversed_)) / 2
        learner.learn(alike + order)
        if step % 20 == 0:
            print(
                f"clip features: step {step}, {learner.schedule.progress(step):.0%}, alike {alike:.3f}, "
                f"order {order:.3f}",
                flush=True,
            )
            network.save(out)
    print(f"clip features: {learner.num_steps} steps of {batch} clips")
    network.save(out)


def retrieval(network: ClipFeatures, clips: Sequence[Tensor]) -> dict[str, float]:
    """Of clips as `read_whole` gives them: how often a clip's first window is nearest, by the cosine of the features,
    to its own last one among those of all clips ("found"), and how often windows are told from the same run backwards
    ("order"), with that pair side by side ("order of a pair")."""
    first, last = (
        torch.stack([part / 127.5 - 1 for part in windows])
        for windows in ([clip[:, :WINDOW] for clip in clips], [clip[:, -WINDOW:] for clip in clips])
    )
    a, b = (F.normalize(network.features(windows), dim=1) for windows in (first, last))
    found = ((a @ b.T).argmax(dim=1) == torch.arange(len(clips))).float().mean().item()
    both = torch.cat([first, last])
    with torch.no_grad():
        forwards, backwards = (network.backwards(network.features(part))[:, 0] for part in (both, both.flip(2)))
    order = torch.cat([forwards < 0, backwards > 0]).float().mean().item()
    return {"found": found, "order": order, "order of a pair": (forwards < backwards).float().mean().item()}
