"""What a training run says while it runs: a bar on a terminal, lines when piped, JSON objects with --json.

Both kinds of run share it: the module has a `schedule` with the run's progress in [0, 1], by steps or by the clock.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch.callbacks import Callback

from tasks.console import Console

_EVERY = 5.0  # seconds between two lines


class TrainingProgress(Callback):
    """Reports step, share done, time left and the last logged values; `history` keeps what was reported."""

    def __init__(self, console: Console, what: str) -> None:
        self.console, self.what = console, what
        self.history: list[dict[str, Any]] = []
        self._begin = self._last = self._share = 0.0
        self._bar: Any = None

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self._begin = self._last = time.monotonic()
        self._share = module.schedule.progress(module.step)  # done before this start, when a run is resumed
        count = sum(p.numel() for p in module.parameters() if p.requires_grad)
        self.console.note(f"{self.what}: {count / 1e6:.2f} M trained parameters on {module.device}, {_length(module)}")
        if sys.stderr.isatty():
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
            columns.append(TextColumn("{task.fields[values]}"))
            self._bar = Progress(*columns, console=RichConsole(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task(self.what, total=1.0, values="")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.monotonic()
        if now - self._last < (_EVERY if self._bar is None else 0.5):
            return
        self._last = now
        self._report(trainer, module, now - self._begin)

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        self._stop()
        self._report(trainer, module, time.monotonic() - self._begin)

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _report(self, trainer: Any, module: Any, seconds: float) -> None:
        values = {name: round(float(value), 5) for name, value in trainer.logged_metrics.items()}
        share = module.schedule.progress(module.step)
        record = {"step": module.step, "progress": round(share, 4), "seconds": round(seconds, 1), **values}
        self.history.append(record)
        shown = _shown(values)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=share, values=f"step {module.step} {shown}")
        else:
            done = share - self._share
            left = f", {seconds * (1 - share) / done:.0f} s left" if done > 0.01 and share < 1 else ""
            self.console.note(f"{self.what}: step {module.step}, {share:.0%} in {seconds:.0f} s{left}  {shown}")
        self.console.emit(record)


def _shown(values: dict[str, float]) -> str:
    """The values that tell most, in a few words."""
    loss = values.get("train/loss")
    parts = [] if loss is None else [f"loss {loss:.4f}"]
    parts += [f"{name.removeprefix('val/')} {value:.2f}" for name, value in values.items() if name.startswith("val/")]
    return "  ".join(parts)


def _length(module: Any) -> str:
    run = module.schedule.run
    parts = [f"{run.max_steps} steps"] if run.max_steps > 0 else []
    parts += [f"{run.max_minutes:g} minutes"] if run.max_minutes > 0 else []
    return f"ends after {' or '.join(parts)}"
