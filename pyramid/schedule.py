"""How long a run lasts and how its learning rate moves; shared by the tokenizer's and the language model's training."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class RunConfig:
    """A run ends at `max_steps` or after `max_minutes`, whichever comes first (0 or -1 steps, and 0 minutes, are no
    limit). The learning rate warms up over `warmup_steps` and falls as a cosine to a fiftieth over the limit that is
    nearer its end."""

    max_steps: int = -1
    max_minutes: float = 10.0
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.02
    ema_decay: float = 0.998
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    num_workers: int = 0
    seed: int = 0
    log_every: int = 20
    val_every: int = 200
    val_batches: int = 4
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("batch_size", "log_every", "val_every", "val_batches", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_minutes", "warmup_steps", "weight_decay", "num_workers"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.max_steps < -1:
            raise ValueError(f"max_steps must be at least -1, got {self.max_steps}")
        if self.max_steps <= 0 and self.max_minutes == 0:
            raise ValueError("max_steps or max_minutes must set an end, got neither")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be from 0 to below 1, got {self.ema_decay}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to {2**32 - 1}, got {self.seed}")


class Schedule:
    """Progress of a run in [0, 1] by steps and by the clock, and the factor on the learning rate.

    The clock is read at `tick` alone, once a step: within a step all see the same progress, and where many ranks train
    together they go by the clock of the first."""

    def __init__(self, run: RunConfig) -> None:
        self.run, self._before, self._start, self._now = run, 0.0, None, 0.0

    def start(self) -> None:
        self._start = time.monotonic()

    def resume(self, seconds: float) -> None:
        """Count `seconds` of earlier work in."""
        self._before = self._now = seconds

    def tick(self, share: Callable[[float], float] | None = None) -> None:
        """Read the clock; `share` makes of this rank's time that of all."""
        seconds = self._before + (time.monotonic() - self._start if self._start is not None else 0.0)
        self._now = seconds if share is None or self.run.max_minutes <= 0 else share(seconds)

    @property
    def seconds(self) -> float:
        """Of work, at the last tick."""
        return self._now

    def progress(self, step: int) -> float:
        """After `step` steps."""
        by_step = step / self.run.max_steps if self.run.max_steps > 0 else 0.0
        by_time = self.seconds / (60 * self.run.max_minutes) if self.run.max_minutes > 0 else 0.0
        return min(1.0, max(by_step, by_time))

    def factor(self, step: int) -> float:
        """On the learning rate of the step after `step` steps."""
        warm = min(1.0, (step + 1) / max(1, self.run.warmup_steps))
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress(step))))


def anneal(first: float, progress: float, until: float) -> float:
    """A factor that falls from `first` at the start of a run to 1 at `until` of it, in a straight line."""
    return 1 + (first - 1) * max(0.0, 1 - progress / max(until, 1e-9))


def training_device(name: str) -> torch.device:
    """The device that Lightning takes for `run.device`, in this process of a torchrun."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)


def training_precision(precision: str, device: str) -> str:
    """Lightning's name for "fp32" or "bf16"; "auto" takes bf16 where the hardware multiplies it natively."""
    if precision == "auto":
        if device in ("auto", "cuda", "gpu") and torch.cuda.is_available():
            native = torch.cuda.is_bf16_supported()
        else:
            native = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if native else "fp32"
    names = {"fp32": "32-true", "bf16": "bf16-mixed"}
    if precision not in names:
        raise ValueError(f"precision: expected auto, fp32 or bf16, got {precision!r}")
    return names[precision]
