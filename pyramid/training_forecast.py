"""What a run will take - minutes, memory, clips, tokens - measured in a few real steps of a copy before it starts."""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from pyramid.data.datamodule import ClipData
from pyramid.distributed import num_ranks
from pyramid.schedule import RunConfig, Schedule, training_device

if TYPE_CHECKING:
    from pyramid.training import TrainingModule

_STEPS, _ENOUGH = 5, 20.0  # steps measured, the first apart; seconds after which fewer must do
_NEVER = 1 << 30


@dataclass(frozen=True)
class Forecast:
    """`step_seconds`: of one step, `wait_seconds` of it waiting for data; `val_seconds`: of one validation; `memory`:
    bytes at the peak, of the process on a CPU and of the device otherwise, on each rank; `steps`, `minutes`, `clips`
    and `tokens`: of the whole run, all ranks together."""

    step_seconds: float
    wait_seconds: float
    val_seconds: float
    memory: int
    steps: int
    minutes: float
    clips: int
    tokens: int

    def sentence(self) -> str:
        waits = f", {self.wait_seconds:.2g} s of it for data" if self.wait_seconds > 0.05 * self.step_seconds else ""
        return (
            f"forecast: {self.minutes:.3g} minutes, {self.steps:,} steps of {self.step_seconds:.2g} s{waits}, "
            f"{self.memory / 2**30:.2g} GiB at the peak, {self.clips:,} clips, {self.tokens:,} tokens"
        )


class _Stopwatch(Callback):
    def __init__(self) -> None:
        self.steps: list[float] = []
        self.waits: list[float] = []
        self.validation = 0.0
        self._begin = self._last = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._start = time.monotonic()
        self.waits.append(self._start - self._last)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        self._last = time.monotonic()
        self.steps.append(self._last - self._start)
        if len(self.steps) > 1 and self._last - self._begin > _ENOUGH:
            trainer.should_stop = True

    def on_validation_start(self, *args: Any) -> None:
        self._start = time.monotonic()

    def on_validation_end(self, *args: Any) -> None:
        self.validation = time.monotonic() - self._start


def measure(module: TrainingModule, data: ClipData, make_trainer: Callable[..., Trainer]) -> Forecast:
    """Real steps and a batch of validation, with the run's data, precision and ranks, of a copy of `module`; neither it
    nor its random numbers move."""
    run, watch = module.run, _Stopwatch()
    probe = copy.deepcopy(module)
    probe.step = module.heaviest_step()
    probe.run = replace(run, max_steps=probe.step + _STEPS, max_minutes=0.0, val_batches=1)
    probe.run = replace(probe.run, val_every=_NEVER, log_every=_NEVER)  # one validation, at the end
    probe.schedule = Schedule(probe.run)
    on_cuda = training_device(run.device).type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    with torch.random.fork_rng():
        make_trainer(probe.run, [watch], logger=False).fit(probe, data)
    # Beside the copy a run holds the moving average of its weights.
    weights = sum(p.numel() * p.element_size() for p in probe.parameters())
    memory = torch.cuda.max_memory_allocated() + weights if on_cuda else _peak_of_process()
    del probe
    if on_cuda:
        torch.cuda.empty_cache()
    wait = median(watch.waits[1:])
    step = median(watch.steps[1:]) + wait
    num_val = min(run.val_batches, len(data.val_dataloader()))
    validation = watch.validation * num_val
    steps, minutes = _length(run, step + validation / run.val_every)
    clips = steps * run.batch_size * num_ranks()
    return Forecast(step, wait, validation, memory, steps, minutes, clips, clips * module.tokens_per_clip())


def _length(run: RunConfig, seconds_a_step: float) -> tuple[int, float]:
    """Steps and minutes of a run, by the nearer of its two ends."""
    by_time = int(60 * run.max_minutes / seconds_a_step) if run.max_minutes > 0 else None
    by_steps = run.max_steps if run.max_steps > 0 else None
    steps = min(count for count in (by_time, by_steps) if count is not None)
    return max(1, steps), steps * seconds_a_step / 60


def _peak_of_process() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
