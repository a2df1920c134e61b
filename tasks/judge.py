"""The judge of generated clips: a classifier of pixels for the attributes of the `shapes` world.

It knows nothing of tokens and shares no weight with the models it judges. Read its accuracy on rendered clips, and on
reconstructions, before believing what it says of samples: those are the ceiling.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyramid.data.shapes import COLOURS, MOTIONS, SHAPES, SIZES, SceneAttributes, ShapesConfig, ShapesDataset
from pyramid.optim import MuonAdamW
from pyramid.schedule import training_precision

ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "motion": MOTIONS}


class Judge(nn.Module):
    """Frames alone down to one vector each, then all frames together. Fixed clip size: (3, num_frames, size, size)."""

    def __init__(self, num_frames: int = 9, size: int = 32) -> None:
        super().__init__()
        self.num_frames, self.size = num_frames, size
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 4, stride=2, padding=1), nn.GELU()]
        for width_in, width_out in ((32, 64), (64, 96)):
            layers += [nn.Conv2d(width_in, width_out, 3, padding=1), nn.GroupNorm(8, width_out), nn.GELU()]
            layers += [nn.MaxPool2d(2)]
        self.frames = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * (size // 8) ** 2, 96), nn.GELU())
        self.clip = nn.Sequential(nn.Linear(96 * num_frames, 256), nn.GELU())
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """video (B, 3, T, H, W) in [-1, 1] -> logits (B, number of values) for each attribute."""
        expected = (3, self.num_frames, self.size, self.size)
        if video.dim() != 5 or tuple(video.shape[1:]) != expected:
            raise ValueError(f"Judge: expected clips (B, {', '.join(map(str, expected))}), got {tuple(video.shape)}")
        each = self.frames(video.transpose(1, 2).flatten(0, 1)).unflatten(0, video.shape[:1] + video.shape[2:3])
        together = self.clip(each.flatten(1))
        return {name: head(together) for name, head in self.heads.items()}

    @torch.no_grad()
    def attributes(self, video: Tensor, batch_size: int = 64) -> list[dict[str, str]]:
        """The value of each attribute that each clip of (B, 3, T, H, W) shows."""
        found: list[dict[str, str]] = []
        for part in video.split(batch_size):
            chosen = {name: logits.argmax(dim=1).tolist() for name, logits in self(part).items()}
            found += [
                {name: ATTRIBUTES[name][values[row]] for name, values in chosen.items()} for row in range(len(part))
            ]
        return found

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config = {"format": "pyramid.judge", "num_frames": self.num_frames, "size": self.size}
        (folder / "config.json").write_text(json.dumps(config) + "\n", encoding="utf8")

    @staticmethod
    def load(folder: str | Path) -> Judge:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError for another format."""
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf8"))
        if config.pop("format", None) != "pyramid.judge":
            raise ValueError(f"Judge.load: {folder}: expected a pyramid.judge, got another format")
        judge = Judge(**config)
        judge.load_state_dict(
            {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        )
        return judge.eval()


def wanted(scene: SceneAttributes) -> dict[str, str]:
    """The attributes of a scene's first object that the judge knows."""
    return {name: getattr(scene.objects[0], name) for name in ATTRIBUTES}


def agreement(
    found: Sequence[dict[str, str]],
    truth: Sequence[dict[str, str]],
    names: Sequence[str] = ("shape", "colour", "motion"),
) -> dict[str, float]:
    """Share of clips right in each of `names`, and under "all" in all of them together."""
    rows = [{name: f.get(name) == t[name] for name in names} for f, t in zip(found, truth, strict=True)]
    figures = {name: sum(row[name] for row in rows) / len(rows) for name in names}
    figures["all"] = sum(all(row.values()) for row in rows) / len(rows)
    return figures


def train_judge(out: str | Path, *, steps: int = 1600, batch_size: int = 32, seed: int = 0) -> dict[str, float]:
    """Train on rendered `mini` clips of every combination (the held-out ones too: the judge must know them), with light
    noise and blur; write it to `out`; return its accuracy on 1,000 clips of other seeds."""
    torch.manual_seed(seed)
    world = ShapesConfig(seed=seed + 1_000_003)
    sources = [ShapesDataset(world, "train"), ShapesDataset(world, "combinations")]
    judge = Judge(world.num_frames, world.height)
    optimizer = MuonAdamW(judge, (judge,), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 50, 1.02 - step / steps))
    native = training_precision("auto", "cpu") == "bf16-mixed"
    for step in range(steps):
        source = sources[step % 8 == 0]
        items = source.__getitems__(list(range(step * batch_size, (step + 1) * batch_size)))
        video = _worn(torch.stack([item["video"] for item in items]))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=native):
            logits = judge(video)
        truth = [wanted(item["attributes"]) for item in items]
        terms = [
            nn.functional.cross_entropy(
                logits[name].float(), torch.tensor([values.index(row[name]) for row in truth]), label_smoothing=0.02
            )
            for name, values in ATTRIBUTES.items()
        ]
        loss = torch.stack(terms).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"judge: step {step} of {steps}, loss {loss.item():.3f}", flush=True)
    judge.eval().save(out)
    return judge_accuracy(Judge.load(out), world)


def judge_accuracy(judge: Judge, world: ShapesConfig, count: int = 500) -> dict[str, float]:
    """The judge's accuracy on rendered clips: `count` of the test split and as many of the held-out combinations."""
    found, truth = [], []
    for split in ("test", "combinations"):
        start = 1 << 19  # indices that training never reaches
        for first in range(start, start + count, 100):
            items = ShapesDataset(world, split).__getitems__(list(range(first, min(first + 100, start + count))))
            found += judge.attributes(torch.stack([item["video"] for item in items]))
            truth += [wanted(item["attributes"]) for item in items]
    return agreement(found, truth) | {"size": agreement(found, truth, ("size",))["size"]}


def _worn(video: Tensor) -> Tensor:
    """A third of the clips slightly blurred, all with a little noise."""
    b, c, t, h, w = video.shape
    soft = nn.functional.avg_pool2d(video.transpose(1, 2).reshape(-1, c, h, w), 3, stride=1, padding=1)
    soft = soft.reshape(b, t, c, h, w).transpose(1, 2)
    share = torch.rand(b, 1, 1, 1, 1) * 0.6 * (torch.rand(b, 1, 1, 1, 1) < 0.33)
    noise = torch.randn_like(video) * 0.06 * torch.rand(b, 1, 1, 1, 1)
    return (torch.lerp(video, soft, share) + noise).clamp(-1, 1)
