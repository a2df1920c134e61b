"""What the judges of clips share: their files, and how training clips are worn, coded and learned from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyramid.optim import MuonAdamW
from pyramid.schedule import RunConfig, Schedule, training_precision
from pyramid.tokenizer import PyramidTokenizer


def save_judge(judge: nn.Module, folder: str | Path, config: dict[str, Any]) -> None:
    """Weights in float16, and `config`, whose "format" names the class."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config) + "\n", encoding="utf8")


def read_config(folder: str | Path, form: str) -> dict[str, Any]:
    """The config that `save_judge` wrote. Raises FileNotFoundError, or ValueError for another format than `form`."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf8"))
    if config.get("format") != form:
        raise ValueError(f"{folder}: expected a {form}, got {config.get('format')}")
    return config


def load_weights(judge: nn.Module, folder: str | Path) -> None:
    """The weights that `save_judge` wrote, in float32; the judge is set to evaluate."""
    weights = load_file(Path(folder) / "model.safetensors")
    judge.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    judge.eval()


class Convolution(nn.Module):
    """A 3x3 convolution with norm, added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.gelu(self.norm(self.convolution(x)))


def as_bytes(video: Tensor) -> Tensor:
    """Any tensor in [-1, 1] as uint8."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@torch.no_grad()
def reconstruct(tokenizer: PyramidTokenizer, video: Tensor, details: Sequence[int], batch_size: int = 16) -> Tensor:
    """Clips through the tokenizer, uint8 (B, 3, T, H, W) in and out, a batch at each of `details` in turn."""
    parts = []
    for number, part in enumerate(video.split(batch_size)):
        detail = details[number % len(details)]
        parts.append(as_bytes(tokenizer.decode(tokenizer.encode(part / 127.5 - 1, detail=detail), detail)))
    return torch.cat(parts)


def native_bf16() -> torch.autocast:
    """Autocast to bfloat16 where this processor multiplies it, else a context that does nothing."""
    native = training_precision("auto", "cpu") == "bf16-mixed"
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=native)


class Learner:
    """Steps of MuonAdamW for `minutes`, the learning rate falling as a cosine."""

    def __init__(self, judge: nn.Module, minutes: float, learning_rate: float = 2e-3) -> None:
        self.optimizer = MuonAdamW(judge, (judge,), lr=learning_rate, weight_decay=0.01)
        self.schedule = Schedule(RunConfig(max_minutes=minutes, warmup_steps=50))
        self.learning_rate = learning_rate
        self.num_steps = 0

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return self.schedule.progress(self.num_steps)

    def steps(self) -> Iterator[int]:
        """The number of each step, from 1, until the time is up."""
        self.schedule.start()
        while self.schedule.progress(self.num_steps) < 1:
            self.num_steps += 1
            yield self.num_steps
            self.schedule.tick()

    def learn(self, loss: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * self.schedule.factor(self.num_steps - 1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
