"""What the training of a tokenizer and of a language model share: the module's plumbing, averaging, the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from pyramid.optim import MuonAdamW
from pyramid.schedule import RunConfig, Schedule, training_precision


class TrainingModule(lightning.LightningModule):
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


def moving_average(decay: float) -> WeightAveraging:
    """Exponential moving average of the weights, used for validation and for what is saved. The decay warms up, so
    that a short run is not averaged with its random start."""

    def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
        n = float(num_averaged)
        return averaged.lerp(current, 1 - min(decay, (1 + n) / (10 + n))) if averaged.is_floating_point() else current

    return WeightAveraging(avg_fn=average, use_buffers=False)


def make_trainer(run: RunConfig, out: Path, callbacks: Sequence[Callback]) -> lightning.Trainer:
    """The Lightning trainer of both kinds of run: EMA, a checkpoint of the last state, a CSV log, no bar of its own."""
    log = out / "metrics.csv"
    if log.exists():  # of a run that is resumed or overwritten: Lightning would delete it
        log.replace(out / f"metrics.{len(list(out.glob('metrics.*.csv'))) + 1}.csv")
    checkpoint = ModelCheckpoint(
        dirpath=out / "checkpoints",
        filename="last",
        every_n_train_steps=run.checkpoint_every,
        enable_version_counter=False,
    )
    return lightning.Trainer(
        max_steps=run.max_steps,
        max_time={"seconds": int(run.max_minutes * 60)} if run.max_minutes else None,
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
        callbacks=[moving_average(run.ema_decay), checkpoint, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
