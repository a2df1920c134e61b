"""A tokenizer's run of a second: a level of each kind of codebook, images among the clips, a discriminator.

As a script it trains in a process that kills itself: `python tiny_run.py OUT STEP WHERE RESUME`, WHERE being "step",
right after a step, or "save", in the middle of writing a checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from pyramid.config import load
from pyramid.train import TrainTokenizerConfig, train_tokenizer

RUN = {
    "model": {
        "height": 16,
        "width": 16,
        "num_frames": 5,
        "chunk_frames": 4,
        "channels": [8, 16],
        "depths": [0, 1],
        "dim": 32,
        "depth": 1,
        "latent_dim": 16,
        "levels": [
            {"codebook": "words"},
            {"codebook": "vq", "h": 2, "w": 2, "codebook_size": 64, "code_dim": 8},
            {"codebook": "fsq", "h": 4, "w": 4, "fsq_levels": [5, 4, 3]},
            {"codebook": "bits", "h": 4, "w": 4, "bits": 10},
        ],
    },
    "data": {"num_clips": 12, "num_val": 4, "image_share": 0.3},
    "loss": {"adversarial": 0.1, "entropy_boost": 3.0},
    "adversary": {"channels": [4, 8, 8], "start": 1, "r1_every": 2},
    "run": {"max_minutes": 0, "max_steps": 9, "batch_size": 4, "warmup_steps": 2, "precision": "fp32", "device": "cpu"},
}
EVERY = ["run.log_every=1", "run.val_every=4", "run.val_batches=1", "run.checkpoint_every=2"]


def config(*overrides: str) -> TrainTokenizerConfig:
    return load(TrainTokenizerConfig, RUN, overrides=[*EVERY, *overrides])


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, module, *args) -> None:
        if module.step == self.step:
            kill()


def kill_while_saving(step: int) -> None:
    """Of the checkpoint after `step`, half is on the disk."""
    save = Trainer.save_checkpoint

    def half(trainer, path, *args, **kwargs):
        save(trainer, path, *args, **kwargs)
        if trainer.lightning_module.step == step:
            os.truncate(path, os.path.getsize(path) // 2)
            kill()

    Trainer.save_checkpoint = half


def main(out: str, step: str, where: str, resume: str) -> None:
    torch.set_num_threads(1)
    callbacks = [KillAfter(int(step))] if where == "step" else []
    if where == "save":
        kill_while_saving(int(step))
    train_tokenizer(config(), Path(out), callbacks=callbacks, resume=resume == "resume")


if __name__ == "__main__":
    main(*sys.argv[1:])
