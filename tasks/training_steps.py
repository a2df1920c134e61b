"""Whole training steps as cases of `pyramid bench ops`: the compiled ops against their references in plain PyTorch.

The shipped `mini` presets, on one batch of the training data: forward, backward and optimizer, without the data loader.
At their own size the steps are linear layers above all; so they are timed on larger clips too, and the tokenizer with a
whole vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pyramid import ops
from pyramid.ops.bench import Case, Contest

if TYPE_CHECKING:
    from pyramid.training import TrainingModule

OPS = ("tokenizer_step", "lm_step")
Clip = tuple[int, tuple[int, int]]  # frames, (height, width)
LARGE_CLIP: Clip = (17, (64, 64))


def cases(device: str) -> list[Case]:
    return [
        Case(op, case, device, _contest(step), ("nearest_code", "bit_quantize", "interval_attention"))
        for op, case, step in (
            ("tokenizer_step", "mini, 16 clips", tokenizer_step),
            (
                "tokenizer_step",
                "mini, 4 clips of 17x64x64, 20,977 words x 384, 2^18 codes",
                partial(tokenizer_step, overrides=("run.batch_size=4",), clip=LARGE_CLIP, vocabulary=(20977, 384, 18)),
            ),
            ("lm_step", "mini, 16 clips", lm_step),
            (
                "lm_step",
                "mini, 4 clips of 17x64x64",
                partial(lm_step, overrides=("run.batch_size=4",), clip=LARGE_CLIP),
            ),
        )
    ]


def _contest(make_step: Callable[..., Callable[[], Any]]) -> Callable[[torch.device], Contest]:
    def make(device: torch.device) -> Contest:
        step = make_step(device)

        def reference() -> Any:
            with ops.backend("reference"):
                return step()

        return Contest(step, {"reference backend": reference})

    return make


def tokenizer_step(
    device: torch.device,
    overrides: tuple[str, ...] = (),
    clip: Clip | None = None,
    vocabulary: tuple[int, int, int] | None = None,
) -> Callable[[], float]:
    """A step of `pyramid train tokenizer -c mini`: what it gives is the loss. `vocabulary`: words, numbers of each, and
    the bits of the fine levels, in place of the config's."""
    from pyramid.tokenizer import PyramidTokenizer
    from pyramid.train import TokenizerTraining, TrainTokenizerConfig
    from tasks.train import read_config

    config = read_config(TrainTokenizerConfig, "pyramid", ["mini"], list(overrides))
    torch.manual_seed(config.run.seed)
    batch = _batch(config, config.model, clip)
    if vocabulary is None:
        return _step(TokenizerTraining(config), batch, device)
    num_words, width, bits = vocabulary
    levels = tuple(dataclasses.replace(level, bits=bits) for level in config.model.levels)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, levels=levels))
    module = TokenizerTraining(config)
    module.tokenizer = PyramidTokenizer(config.model, _random_words(num_words, width)).train()
    module.count_usage()
    return _step(module, batch, device)


def _random_words(num_words: int, width: int) -> Any:
    """The shipped words and made-up ones, at random places."""
    from pyramid.words import WordTable

    words = [*WordTable.load().words, *(f"word{index}" for index in range(num_words))][:num_words]
    embeddings = torch.randn(num_words, width, generator=torch.Generator().manual_seed(0)) * width**-0.5
    return WordTable(tuple(words), embeddings, torch.zeros(width), torch.eye(width), "random")


def lm_step(device: torch.device, overrides: tuple[str, ...] = (), clip: Clip | None = None) -> Callable[[], float]:
    """A step of `pyramid train lm -c mini` over the shipped tokenizer: what it gives is the loss."""
    from lm.train import LMTraining, TrainLMConfig, make_lm
    from tasks.models import load_tokenizer
    from tasks.train import read_config

    config = read_config(TrainLMConfig, "lm", ["mini"], list(overrides))
    torch.manual_seed(config.run.seed)
    tokenizer = load_tokenizer("mini")
    batch = _batch(config, tokenizer.config, clip)
    return _step(LMTraining(config, make_lm(config, tokenizer, batch["caption"])), batch, device)


def _batch(config: Any, video: Any, clip: Clip | None) -> dict:
    from pyramid.data.datamodule import collate_clips
    from pyramid.data.sources import make_datasets

    num_frames, size = clip or (video.num_frames, video.size)
    train, _ = make_datasets(config.data, num_frames, size, video.fps)
    return collate_clips([train[index] for index in range(config.run.batch_size)])


def _step(module: TrainingModule, batch: dict, device: torch.device) -> Callable[[], float]:
    """In the precision that training takes, with the same random draws in every step; the weights move on."""
    from pyramid.schedule import training_precision

    mixed = training_precision(module.run.precision, device.type) == "bf16-mixed"
    module.to(device).train()
    batch = module.transfer_batch_to_device(batch, device, 0)
    for name in ("log", "log_dict"):  # there is no trainer to log to
        setattr(module, name, lambda *args, **kwargs: None)
    optimizer: torch.optim.Optimizer = module.configure_optimizers()[0]

    def step() -> float:
        torch.manual_seed(0)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss: Any = module.objective(batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
