"""Training a language model over pyramids: `train_lm(config, out)` learns both directions at once.

Every step writes the pyramids of a batch from their text (a random share of each block hidden, the text dropped now
and then for guidance) and reads the captions from their coarse levels. The video tokenizer is frozen; clips are
tokenized as they come.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from transformers import AutoTokenizer

from lm.backbone import LMConfig, make_backbone
from lm.model import PyramidLM, TextWarning
from lm.vocabulary import train_text_tokenizer
from pyramid.data.datamodule import ClipData
from pyramid.data.sources import DataConfig, make_datasets
from pyramid.schedule import RunConfig
from pyramid.tokenizer import PyramidTokenizer
from pyramid.tokens import TokenPyramid
from pyramid.training import TrainingModule, check_resume, fit
from pyramid.training_forecast import Forecast

# A block of n tokens weighs n^_BLOCK_POWER: a word alone counts for less than a level of bits, but for more than one of
# its codes.
_BLOCK_POWER = 0.5


@dataclass(frozen=True)
class LMLossConfig:
    """`caption`: weight of reading against writing; `drop_text`: share of clips written without their text;
    `paraphrase`: share of prompts in other words, where the data has them; `all_levels`: share of steps that write at
    full detail, the others stop at a random level; `caption_default`: share of steps that read at `caption_detail`."""

    caption: float = 0.5
    drop_text: float = 0.1
    paraphrase: float = 0.5
    all_levels: float = 0.8
    caption_default: float = 0.8


@dataclass(frozen=True)
class TrainLMConfig:
    """The whole of a language-model run. `tokenizer`: folder or hub id of the video tokenizer; `initialize`: a folder
    of a PyramidLM to start from."""

    tokenizer: str = ""
    model: LMConfig = field(default_factory=LMConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LMLossConfig = field(default_factory=LMLossConfig)
    run: RunConfig = field(default_factory=RunConfig)
    initialize: str | None = None


class LMTraining(TrainingModule):
    """Batches are those of `ClipData`: `video`, `caption`, and where the data has them `paraphrase` (other words to
    write from) and `seen` (the clip as read from a file, to be captioned as well as the clip itself)."""

    def __init__(self, config: TrainLMConfig, lm: PyramidLM) -> None:
        super().__init__(config.run)
        self.config, self.lm = config, lm.train()  # transformers loads a pretrained backbone in eval mode

    def objective(self, batch: dict) -> Tensor:
        loss, lm = self.config.loss, self.lm
        tokens = self._tokens(batch["video"])
        detail = lm.num_levels if torch.rand(()) < loss.all_levels else int(torch.randint(1, lm.num_levels + 1, ()))
        levels = lm.generation_loss(tokens.truncate(detail), self._prompts(batch), detail)
        total = self._mean(levels, tokens)
        self.log_dict(
            {f"train/level{k + 1}": value.detach() for k, value in levels.items()}, batch_size=tokens.batch_size
        )
        told = [row for row, caption in enumerate(batch["caption"]) if caption]
        if told:
            reading = lm.config.caption_detail
            if torch.rand(()) >= loss.caption_default:
                reading = int(torch.randint(1, lm.num_levels + 1, ()))
            rows = torch.tensor(told, device=self.device)
            sentences = [lm.text_ids(batch["caption"][row]) for row in told]
            seen = self._tokens(batch["seen"]) if "seen" in batch else tokens
            caption = lm.caption_loss(seen.truncate(reading)[rows], sentences, reading)
            self.log("train/caption", caption.detach())
            total = total + loss.caption * caption
        self.log("train/loss", total.detach())
        return total

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        lm = self.lm
        generator = torch.Generator().manual_seed(batch_idx)
        sentences = [lm.text_ids(caption) for caption in batch["caption"]]
        with self.exact():
            tokens = self._tokens(batch["video"])
            losses = lm.generation_loss(tokens, sentences, lm.num_levels, generator)
            written = lm.caption(tokens)
        for k, value in losses.items():
            self.log(f"val/level{k + 1}", value, batch_size=len(sentences))
        right = [a == b for a, b in zip(written, batch["caption"], strict=True) if b]
        if right:
            self.log("val/caption_exact", sum(right) / len(right), batch_size=len(right))

    def _tokens(self, video: Tensor) -> TokenPyramid:
        with self.exact():
            return self.lm.tokenizer.encode(video)

    def _prompts(self, batch: dict) -> list[list[int]]:
        loss, others = self.config.loss, batch.get("paraphrase", batch["caption"])
        draws = torch.rand(len(others), 2).tolist()
        prompts = []
        for caption, other, (drop, reword) in zip(batch["caption"], others, draws, strict=True):
            text = other if reword < loss.paraphrase else caption
            prompts.append([] if drop < loss.drop_text else self.lm.text_ids(text))
        return prompts

    def _mean(self, levels: dict[int, Tensor], tokens: TokenPyramid) -> Tensor:
        weights = {k: tokens.pyramids[-1].counts[k] ** _BLOCK_POWER for k in levels}
        return sum(weights[k] * value for k, value in levels.items()) / sum(weights.values())

    def inside(self) -> tuple[nn.Module, ...]:
        return (self.lm.backbone.base_model,)

    def tokens_per_clip(self) -> int:
        tokenizer = self.lm.tokenizer
        return sum(pyramid.num_tokens for pyramid in tokenizer.pyramids(tokenizer.config.num_frames))


def make_lm(config: TrainLMConfig, tokenizer: PyramidTokenizer, captions: Sequence[str]) -> PyramidLM:
    """The untrained model of a config; without a pretrained backbone its text tokenizer is learned from `captions`."""
    if config.initialize:
        return PyramidLM.from_pretrained(config.initialize, tokenizer=tokenizer)
    if config.model.backbone:
        text = AutoTokenizer.from_pretrained(config.model.backbone)
    else:
        text = train_text_tokenizer(captions, config.model.text_size)
    return PyramidLM(config.model, tokenizer, text, make_backbone(config.model, len(text)))


def train_lm(
    config: TrainLMConfig,
    out: str | Path,
    *,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    forecast: Callable[[Forecast], None] | None = None,
) -> Path:
    """Train, and write to `out`: the model folder (see `PyramidLM.save_pretrained`), train_config.yaml, metrics.csv and
    checkpoints/last.ckpt (for resuming only). Returns `out`. `forecast` is called before the run with what a few
    real steps tell of it.

    Raises FileNotFoundError for a missing tokenizer, or to resume where nothing was saved; ValueError to resume with
    another config; KeyboardInterrupt when it is stopped, after saving a checkpoint to resume from.
    """
    out = Path(out)
    if resume:
        check_resume(config, out, "train lm")
    if not config.tokenizer:
        raise ValueError("train lm: tokenizer: expected the folder of a trained tokenizer, got none")
    lightning.seed_everything(config.run.seed, verbose=False)
    tokenizer = PyramidTokenizer.from_pretrained(config.tokenizer)
    video = tokenizer.config
    train, val = make_datasets(config.data, video.num_frames, video.size, video.fps)
    captions = _captions(train)
    lm = make_lm(config, tokenizer, captions)
    _warn_of_cut(captions, lm)
    data = ClipData(
        train, val, batch_size=config.run.batch_size, num_workers=config.run.num_workers, seed=config.run.seed
    )
    if fit(LMTraining(config, lm), data, config, out, callbacks, resume, forecast):
        local = Path(config.tokenizer).is_dir()
        named = os.path.relpath(config.tokenizer, out) if local else config.tokenizer
        lm.eval().save_pretrained(out, tokenizer=named)
    return out


def _captions(dataset) -> list[str]:
    """Sentences to learn a text tokenizer from: those of the metadata, or of a sample of a procedural world."""
    dataset = getattr(dataset, "dataset", dataset)  # the captions of a wrapped data set are those of the inner one
    if hasattr(dataset, "clips"):
        return [clip.caption for clip in dataset.clips if clip.caption]
    items = dataset.describe(range(min(len(dataset), 2048)))
    return [item[name] for item in items for name in ("caption", "paraphrase")]


def _warn_of_cut(captions: Sequence[str], lm: PyramidLM, most: int = 4096) -> None:
    """A `TextWarning` where some of the first `most` captions are longer than the model reads and writes."""
    lengths = [len(lm.text_ids(caption)) for caption in captions[:most]]
    cut = sum(length > lm.config.max_text for length in lengths)
    if cut:
        warnings.warn(
            f"train lm: {cut} of {len(lengths)} captions are cut at max_text={lm.config.max_text} tokens, the longest "
            f"has {max(lengths)}",
            TextWarning,
            stacklevel=3,
        )
