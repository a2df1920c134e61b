"""What the training of a tokenizer and of a language model share: the module's plumbing, averaging, the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from pyramid.config import flatten, load, to_yaml
from pyramid.files import replacing
from pyramid.optim import MuonAdamW
from pyramid.schedule import RunConfig, Schedule, training_precision

CONFIG = "train_config.yaml"
# What may change when a run is resumed; the learning rate, say, is part of the optimizer's saved state.
_FREE = {"data.path", "data.metadata", "initialize"} | {
    f"run.{name}"
    for name in ("max_steps", "max_minutes", "precision", "device", "num_workers")
    + ("log_every", "val_every", "val_batches", "checkpoint_every")
}


class TrainingModule(LightningModule):
    """One optimizer, a schedule by steps or by the clock that a checkpoint remembers, batches of `ClipData`."""

    def __init__(self, run: RunConfig) -> None:
        super().__init__()
        self.run = run
        self.schedule = Schedule(run)

    def inside(self) -> tuple[nn.Module, ...]:
        """The modules whose matrices Muon trains."""
        raise NotImplementedError

    def exact(self) -> torch.autocast:
        """Context without autocast: ids are made, and figures taken, in float32 whatever the training's precision."""
        return torch.autocast(self.device.type, enabled=False)

    def configure_optimizers(self):
        optimizer = MuonAdamW(self, self.inside(), lr=self.run.learning_rate, weight_decay=self.run.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(self, step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def transfer_batch_to_device(self, batch: dict, device: torch.device, dataloader_idx: int) -> dict:
        # Lightning's own walk refuses frozen dataclasses, which is what attributes are.
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}

    def on_fit_start(self) -> None:
        self.schedule.start()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["seconds"] = self.schedule.seconds

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.schedule.resume(checkpoint["seconds"])


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights, used for validation and for what is saved. The decay warms up, so
    that a short run is not averaged with its random start.

    Keeps the state of the run in `path`, weights and average: every `every` steps, when the run is interrupted, and at
    its end, before the weights give way to their average. The file is always whole. `ended`: the run came to its end.
    """

    def __init__(self, decay: float, device: torch.device, path: Path, every: int) -> None:
        def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
            n = float(num_averaged)
            moved = averaged.is_floating_point()
            return averaged.lerp(current, 1 - min(decay, (1 + n) / (10 + n))) if moved else current

        super().__init__(device=device, avg_fn=average, use_buffers=False)
        self.path, self.every, self.ended, self._swapped = path, every, False, False

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_batch_end(trainer, *args)
        if trainer.global_step % self.every == 0:
            self._keep(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_validation_epoch_start(trainer, *args)
        self._swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        super().on_validation_epoch_end(trainer, *args)
        self._swapped = False

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        self._keep(trainer)
        self.ended = True
        super().on_train_end(trainer, *args)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self._swapped:  # stopped within a validation
            self.on_validation_epoch_end(trainer, module)
        if trainer.global_step > 0 and not self.ended:
            self._keep(trainer)

    def _keep(self, trainer: Trainer) -> None:
        with replacing(self.path) as part:
            trainer.save_checkpoint(part)


def make_trainer(run: RunConfig, out: Path, callbacks: Sequence[Callback]) -> Trainer:
    """The Lightning trainer of both kinds of run: `callbacks` (the average first), a CSV log, no bar of its own."""
    log = out / "metrics.csv"
    if log.exists():  # of a run that is resumed or overwritten: Lightning would delete it
        log.replace(out / f"metrics.{len(list(out.glob('metrics.*.csv'))) + 1}.csv")
    return Trainer(
        max_steps=run.max_steps or -1,
        max_time=timedelta(minutes=run.max_minutes) if run.max_minutes else None,
        accelerator=run.device,
        devices=1,
        precision=training_precision(run.precision, run.device),
        gradient_clip_val=1.0,
        val_check_interval=run.val_every,
        check_val_every_n_epoch=None,
        limit_val_batches=run.val_batches,
        num_sanity_val_steps=0,
        log_every_n_steps=run.log_every,
        logger=CSVLogger(out, name="", version=""),
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def checkpoint_of(out: Path) -> Path:
    return out / "checkpoints" / "last.ckpt"


def check_resume(config: Any, out: Path, who: str) -> None:
    """Whether the run in `out` can go on with `config`: all of it must be what the run began with, but for where the
    run ends, what it logs, and where it and its data are.

    Raises FileNotFoundError where there is no checkpoint, ValueError for a config that differs: which keys.
    """
    for file in (checkpoint_of(out), out / CONFIG):
        if not file.is_file():
            raise FileNotFoundError(f"{who}: to resume, expected a checkpoint, found no file {file}")
    begun, wanted = flatten(load(type(config), out / CONFIG)), flatten(config)
    changed = sorted(key for key in begun | wanted if key not in _FREE and wanted.get(key) != begun.get(key))
    if changed:
        raise ValueError(f"{who}: to resume {out}, expected the config it began with, got another {', '.join(changed)}")


def fit(
    module: TrainingModule,
    data: LightningDataModule,
    config: Any,
    out: Path,
    callbacks: Sequence[Callback],
    resume: bool,
) -> bool:
    """Train, logging and saving in `out`; beside the checkpoint there is the config, train_config.yaml. Returns whether
    this process is the one to save the model.

    Raises ValueError to resume a run that has come to its end; KeyboardInterrupt where the user stopped it, after
    saving a checkpoint if there was a step.
    """
    run, checkpoint = config.run, checkpoint_of(out)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if not resume:
        checkpoint.unlink(missing_ok=True)  # of another run
    on_cuda = run.device == "cuda" or (run.device == "auto" and torch.cuda.is_available())
    average = MovingAverage(run.ema_decay, torch.device("cuda" if on_cuda else "cpu"), checkpoint, run.checkpoint_every)
    trainer = make_trainer(run, out, [average, *callbacks])
    if trainer.is_global_zero:
        (out / CONFIG).write_text(to_yaml(config), encoding="utf8")
    try:
        trainer.fit(module, data, ckpt_path=str(checkpoint) if resume else None, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    if not average.ended:
        raise ValueError(
            f"{out}: expected a run to go on with, but it has come to its end after {trainer.global_step} steps; raise "
            "run.max_steps or run.max_minutes"
        )
    return trainer.is_global_zero
