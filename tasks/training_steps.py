"""Whole training steps as cases of `pyramid bench ops`: the compiled ops against their references in plain PyTorch.

The shipped `mini` presets, on one batch of the training data: forward, backward and optimizer, without the data loader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from pyramid import ops
from pyramid.ops.bench import Case, Contest

if TYPE_CHECKING:
    from pyramid.training import TrainingModule

OPS = ("tokenizer_step", "lm_step")


def cases(device: str) -> list[Case]:
    return [
        Case("tokenizer_step", "mini, 16 clips", device, _contest(tokenizer_step), ("nearest_code", "bit_quantize")),
        Case("lm_step", "mini, 16 clips", device, _contest(lm_step), ("nearest_code", "interval_attention")),
    ]


def _contest(make_step: Callable[..., Callable[[], Any]]) -> Callable[[torch.device], Contest]:
    def make(device: torch.device) -> Contest:
        step = make_step(device)

        def reference() -> Any:
            with ops.backend("reference"):
                return step()

        return Contest(step, {"reference backend": reference})

    return make


def tokenizer_step(device: torch.device, overrides: tuple[str, ...] = ()) -> Callable[[], float]:
    """A step of `pyramid train tokenizer -c mini`: what it gives is the loss."""
    from pyramid.train import TokenizerTraining, TrainTokenizerConfig
    from tasks.train import read_config

    config = read_config(TrainTokenizerConfig, "pyramid", ["mini"], list(overrides))
    torch.manual_seed(config.run.seed)
    return _step(TokenizerTraining(config), _batch(config, config.model), device)


def lm_step(device: torch.device, overrides: tuple[str, ...] = ()) -> Callable[[], float]:
    """A step of `pyramid train lm -c mini` over the shipped tokenizer: what it gives is the loss."""
    from lm.train import LMTraining, TrainLMConfig, make_lm
    from tasks.models import load_tokenizer
    from tasks.train import read_config

    config = read_config(TrainLMConfig, "lm", ["mini"], list(overrides))
    torch.manual_seed(config.run.seed)
    tokenizer = load_tokenizer()
    batch = _batch(config, tokenizer.config)
    return _step(LMTraining(config, make_lm(config, tokenizer, batch["caption"])), batch, device)


def _batch(config: Any, video: Any) -> dict:
    from pyramid.data.datamodule import collate_clips
    from pyramid.data.sources import make_datasets

    train, _ = make_datasets(config.data, video.num_frames, video.size, video.fps)
    return collate_clips([train[index] for index in range(config.run.batch_size)])


def _step(module: TrainingModule, batch: dict, device: torch.device) -> Callable[[], float]:
    """In the precision that training takes, with the same random draws in every step; the weights move on."""
    from pyramid.schedule import training_precision

    mixed = training_precision(module.run.precision, device.type) == "bf16-mixed"
    module.to(device).train()
    batch = module.transfer_batch_to_device(batch, device, 0)
    for name in ("log", "log_dict"):  # there is no trainer to log to
        setattr(module, name, lambda *args, **kwargs: None)
    optimizer: torch.optim.Optimizer = module.configure_optimizers()["optimizer"]

    def step() -> float:
        torch.manual_seed(0)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss: Any = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
