"""What the training of a tokenizer and of a language model share: the module's plumbing, averaging, the trainer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from pyramid.config import flatten, load, to_yaml
from pyramid.data.datamodule import ClipData
from pyramid.distributed import from_first, rank
from pyramid.files import replacing
from pyramid.optim import MuonAdamW
from pyramid.schedule import RunConfig, Schedule, training_device, training_precision
from pyramid.training_forecast import Forecast, measure

CONFIG = "train_config.yaml"
# What may change when a run is resumed; the learning rate, say, is part of the optimizer's saved state.
_FREE = {"data.path", "data.metadata", "initialize"} | {
    f"run.{name}"
    for name in ("max_steps", "max_minutes", "precision", "device", "num_workers")
    + ("log_every", "val_every", "val_batches", "checkpoint_every")
}


def _free(key: str) -> bool:
    return key in _FREE or key.startswith("gates.")


class TrainingModule(LightningModule):
    """One pass and one descent a step, on batches of `ClipData`; subclasses say the `objective`.

    `step` counts steps and is what learning rate, data, random numbers, checkpoints, logs and the end of the run go by;
    Lightning's own count is one of optimizer steps, two of them where there are two optimizers (its issue 17958).

    Everything random in a step is a function of (seed, step, rank), so that a run that is resumed draws what it would
    have drawn. What all ranks must draw alike comes from `generator`, which knows no rank.
    """

    def __init__(self, run: RunConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.run = run
        self.schedule = Schedule(run)
        self.step = 0

    def inside(self) -> tuple[nn.Module, ...]:
        """The modules whose matrices Muon trains."""
        raise NotImplementedError

    def objective(self, batch: dict) -> Tensor:
        """The loss of a batch, scalar; logs its terms."""
        raise NotImplementedError

    def tokens_per_clip(self) -> int:
        """Of the training clips."""
        raise NotImplementedError

    def heaviest_step(self) -> int:
        """The first step that does all that a step may have to do."""
        return 0

    def generator(self, purpose: int = 0) -> torch.Generator:
        """A new generator of this step's numbers for a purpose, on the CPU, the same on all ranks."""
        return torch.Generator().manual_seed(mix_seed(self.run.seed, self.step, 1, purpose))

    def exact(self) -> torch.autocast:
        """Context without autocast: ids are made, and figures taken, in float32 whatever the training's precision."""
        return torch.autocast(self.device.type, enabled=False)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [MuonAdamW(self, self.inside(), lr=self.run.learning_rate, weight_decay=self.run.weight_decay)]

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        self.schedule.tick(from_first)
        torch.manual_seed(mix_seed(self.run.seed, self.step, 0, rank()))
        factor = self.schedule.factor(self.step)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

    def training_step(self, batch: dict, batch_idx: int) -> None:
        self.descend(self.trained_by()[0], self.objective(batch))
        self.end_step()

    def trained_by(self) -> list[Any]:
        """The optimizers, wrapped by Lightning, in a list."""
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def descend(self, optimizer: Any, loss: Tensor) -> None:
        """One step of an optimizer down the loss, its gradient clipped to norm 1."""
        with self.exact():  # Lightning's autocast is around the whole of a training step
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()

    def end_step(self) -> None:
        self.step += 1
        if self.schedule.progress(self.step) >= 1:
            self.trainer.should_stop = True  # after a validation

    def logs_now(self) -> bool:
        """Whether this step's figures are written."""
        return (self.step + 1) % self.run.log_every == 0

    def transfer_batch_to_device(self, batch: dict, device: torch.device, dataloader_idx: int) -> dict:
        # Lightning's own walk refuses frozen dataclasses, which is what attributes are.
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}

    def on_fit_start(self) -> None:
        self.schedule.start()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint |= {"step": self.step, "seconds": self.schedule.seconds}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.step = checkpoint["step"]
        self.schedule.resume(checkpoint["seconds"])


def mix_seed(*numbers: int) -> int:
    """A seed out of several numbers, unlike that of their neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights, learned codebooks among them, used for validation and for what is
    saved. The decay warms up, so that a short run is not averaged with its random start.

    Keeps the state of the run in `path`, weights and average: every `every` steps, when the run is interrupted, and at
    its end, before the weights give way to their average. The file is always whole. `ended`: the run came to its end.
    """

    def __init__(self, decay: float, device: torch.device, path: Path, every: int) -> None:
        def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
            n = float(num_averaged)
            moved = averaged.is_floating_point()
            return averaged.lerp(current, 1 - min(decay, (1 + n) / (10 + n))) if moved else current

        super().__init__(device=device, avg_fn=average, use_buffers=True)
        self.path, self.every, self.ended, self._swapped = path, every, False, False

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, module, *args)
        if module.step % self.every == 0:
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
        if module.step > 0 and not self.ended:
            self._keep(trainer)

    def _keep(self, trainer: Trainer) -> None:
        """All ranks come here, the first one writes."""
        with replacing(self.path) if trainer.is_global_zero else nullcontext(self.path) as part:
            trainer.save_checkpoint(part)


def make_trainer(run: RunConfig, callbacks: Sequence[Callback], **options: Any) -> Trainer:
    """A Lightning trainer that stops when the module says so, without a bar of its own. Under torchrun its processes
    train together (DDP; with gloo on the CPU)."""
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world > 1:
        # A discriminator's turn leaves the tokenizer's gradients alone, and the other way round.
        options |= {"strategy": DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)}
    return Trainer(
        max_epochs=-1,
        accelerator=run.device,
        devices=local,
        num_nodes=world // local,
        precision=training_precision(run.precision, run.device),
        val_check_interval=run.val_every,
        check_val_every_n_epoch=None,
        limit_val_batches=run.val_batches,
        num_sanity_val_steps=0,
        log_every_n_steps=run.log_every,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def _make_logger(run: RunConfig, out: Path) -> CSVLogger:
    """metrics.csv, written as it comes: little is lost with a process that is killed."""
    log = out / "metrics.csv"
    if log.exists():  # of a run that is resumed or overwritten: Lightning would delete it
        log.replace(out / f"metrics.{len(list(out.glob('metrics.*.csv'))) + 1}.csv")
    return CSVLogger(out, name="", version="", flush_logs_every_n_steps=run.log_every)


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
    changed = sorted(key for key in begun | wanted if not _free(key) and wanted.get(key) != begun.get(key))
    if changed:
        raise ValueError(f"{who}: to resume {out}, expected the config it began with, got another {', '.join(changed)}")


def fit(
    module: TrainingModule,
    data: ClipData,
    config: Any,
    out: Path,
    callbacks: Sequence[Callback],
    resume: bool,
    forecast: Callable[[Forecast], None] | None = None,
) -> bool:
    """Train, logging and saving in `out`; beside the checkpoint there is the config, train_config.yaml. `forecast` is
    called before the run with what a few steps tell of it. Returns whether this process is the one to save the model.

    Raises ValueError to resume a run that has come to its end; KeyboardInterrupt where the user stopped it, after
    saving a checkpoint if there was a step.
    """
    run, checkpoint, first = config.run, checkpoint_of(out), int(os.environ.get("RANK", 0)) == 0
    if resume:
        _check_not_ended(run, checkpoint)
    elif first:
        checkpoint.unlink(missing_ok=True)  # of another run
    if first:  # alone: who asks for a new folder would find what another rank has put there
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        for part in checkpoint.parent.glob(f".{checkpoint.name}.*.part"):  # of a process that was killed
            part.unlink()
        (out / CONFIG).write_text(to_yaml(config), encoding="utf8")
    if forecast is not None:
        foretold = measure(module, data, make_trainer)
        if first:
            forecast(foretold)
    average = MovingAverage(run.ema_decay, training_device(run.device), checkpoint, run.checkpoint_every)
    trainer = make_trainer(run, [average, *callbacks], logger=_make_logger(run, out) if first else False)
    try:
        trainer.fit(module, data, ckpt_path=str(checkpoint) if resume else None, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    return trainer.is_global_zero


def _check_not_ended(run: RunConfig, checkpoint: Path) -> None:
    state = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    schedule = Schedule(run)
    schedule.resume(state["seconds"])
    if schedule.progress(state["step"]) >= 1:
        raise ValueError(
            f"{checkpoint.parents[1]}: expected a run to go on with, but it has come to its end after {state['step']} "
            "steps; raise run.max_steps or run.max_minutes"
        )
