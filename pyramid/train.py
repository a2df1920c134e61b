"""Training a tokenizer: `train_tokenizer(config, out)` fits, validates per detail and writes a model folder.

The objective: pixels at a random detail of each clip (so that every prefix decodes), the quantizers' own losses, the
latent's distance to each prefix of the pyramid, and meaning on the word levels (`semantic.py`). Early in the
run part of the clips skips quantization, so that encoder and decoder learn from clean gradients first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from pyramid.data.datamodule import ClipData
from pyramid.data.sources import DataConfig, make_datasets
from pyramid.losses import reconstruction_loss
from pyramid.metrics import CodeUsage, psnr
from pyramid.quantize import QuantizedChunk
from pyramid.schedule import RunConfig
from pyramid.semantic import SemanticConfig, SemanticObjective, dynamic_weight
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig, TrainingOutput
from pyramid.training import TrainingModule, check_resume, fit
from pyramid.words import WordTable


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms. `semantic_first`: of the first frame's words relative to the other chunks'; `unquantized`:
    share of clips that skip quantization at the start, falling to none at `unquantized_until` of the run;
    `full_detail`: share of the other clips trained at full detail, the rest at a random one."""

    reconstruction: float = 5.0
    quantizer: float = 0.1
    latent: float = 0.25
    semantic: float = 0.3
    semantic_first: float = 0.5
    unquantized: float = 0.5
    unquantized_until: float = 0.5
    full_detail: float = 0.5


@dataclass(frozen=True)
class TrainTokenizerConfig:
    """The whole of a tokenizer run. `run`: length, batch and optimizer; `words`: the word table, a file that `pyramid
    data words` wrote, by default the one that ships; `initialize`: a model folder to start from, whose config and words
    then take the place of `model` and `words`."""

    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    run: RunConfig = field(default_factory=RunConfig)
    words: str | None = None
    initialize: str | None = None


class TokenizerTraining(TrainingModule):
    """One optimizer, one pass a step; batches are those of `ClipData`. The encoder sees `seen` where a batch has it,
    the decoder is to give `video`."""

    def __init__(self, config: TrainTokenizerConfig) -> None:
        super().__init__(config.run)
        self.config = config
        if config.initialize:
            self.tokenizer = PyramidTokenizer.from_pretrained(config.initialize).train()
        else:
            self.tokenizer = PyramidTokenizer(config.model, WordTable.load(config.words) if config.words else None)
        self.semantic = None
        if self.tokenizer.table is not None and self.tokenizer.word_levels:
            self.semantic = SemanticObjective(config.semantic, self.tokenizer.table)
        self.count_usage()
        self.val_psnr: list[list[Tensor]] = []

    def count_usage(self) -> None:
        """Count the codes of every level of `tokenizer` from here on."""
        self.usage = [CodeUsage(level.quantizer.codebook_size) for level in self.tokenizer.levels.levels]

    # ------------------------------------------------------------------------------------------ steps

    def sample_detail(self, batch_size: int) -> Tensor:
        """A detail for each clip, 1 .. num_levels, or num_levels + 1 for no quantization."""
        loss, num_levels = self.config.loss, self.tokenizer.num_levels
        detail = torch.randint(1, num_levels + 1, (batch_size,))
        detail = torch.where(torch.rand(batch_size) < loss.full_detail, num_levels, detail)
        share = loss.unquantized * max(0.0, 1 - self.schedule.progress(self) / max(loss.unquantized_until, 1e-9))
        return torch.where(torch.rand(batch_size) < share, num_levels + 1, detail).to(self.device)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        video = self._whole_chunks(batch["video"])
        seen = self._whole_chunks(batch["seen"]) if "seen" in batch else video
        out = self.tokenizer(seen, self.sample_detail(len(video)))
        terms = self.losses(out, video, batch)
        for chunk in out.chunks:
            for usage, ids in zip(self.usage, chunk.ids, strict=True):
                usage.update(ids)
        weights = self.config.loss
        total = (
            weights.reconstruction * terms["reconstruction"]
            + weights.quantizer * terms["quantizer"]
            + weights.latent * terms["latent"]
        )
        pull = dynamic_weight(total, terms["semantic"]) if self.config.semantic.dynamic else 1.0
        total = total + weights.semantic * pull * terms["semantic"]
        self.log_dict(
            {f"train/{name}": torch.as_tensor(value).detach() for name, value in terms.items()}, batch_size=len(video)
        )
        self.log("train/loss", total.detach(), batch_size=len(video))
        if self.global_step % self.config.run.log_every == 0:
            self._log_usage()
        return total

    def losses(self, out: TrainingOutput, video: Tensor, batch: dict) -> dict[str, Tensor]:
        """Unweighted terms, scalars; `words_hit`: share of the words that the teacher asks for that some token of the
        last chunk names. `batch` is what the teacher reads."""
        terms = {"reconstruction": reconstruction_loss(out.video, video)}
        terms["quantizer"] = sum(loss for chunk in out.chunks for loss in chunk.losses)
        terms["latent"] = torch.stack([_latent_loss(chunk) for chunk in out.chunks]).sum()
        terms["semantic"], terms["words_hit"] = video.new_zeros(()), 0.0
        if self.semantic is None:
            return terms
        levels = self.tokenizer.word_levels
        embeddings = self.tokenizer.levels.levels[levels[0]].quantizer.embeddings
        step = self.tokenizer.config.chunk_frames
        frames = [video[:, :, :1], *video[:, :, 1:].split(step, dim=2)] if video.shape[2] > 1 else [video]
        with self.exact():
            num_positions = sum(out.chunks[-1].ids[level][0].numel() for level in levels)
            lesson = self.semantic.lesson(batch, num_positions)
            for index, (chunk, pixels) in enumerate(zip(out.chunks, frames, strict=True)):
                queries = [chunk.queries[level].float() for level in levels]
                loss, terms["words_hit"] = self.semantic(queries, embeddings, lesson, pixels)
                last = index or len(out.chunks) == 1
                terms["semantic"] = terms["semantic"] + loss * (1.0 if last else self.config.loss.semantic_first)
        return terms

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.semantic is not None:
            self.semantic.to(self.device)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        with self.exact():
            tokens = self.tokenizer.encode(batch["video"])
            self.val_psnr.append(
                [psnr(self.tokenizer.decode(tokens, k + 1), batch["video"]) for k in range(tokens.num_levels)]
            )
        if self.tokenizer.table is not None and self.tokenizer.word_levels:
            hits = [
                _coverage(self.tokenizer, clip[-1], caption)
                for clip, caption in zip(self.tokenizer.words(tokens), batch["caption"], strict=True)
            ]
            hits = [hit for hit in hits if hit is not None]
            if hits:
                self.log("val/words_hit", sum(hits) / len(hits), batch_size=len(hits))

    def on_validation_epoch_end(self) -> None:
        for k, values in enumerate(zip(*self.val_psnr, strict=True), start=1):
            self.log(f"val/psnr_detail{k}", torch.cat(values).mean())
        self.val_psnr.clear()

    def inside(self) -> tuple[nn.Module, ...]:
        return (self.tokenizer.encoder, self.tokenizer.decoder)

    def _whole_chunks(self, video: Tensor) -> Tensor:
        """Fill a clip up to whole chunks and strides, as inference does."""
        c = self.tokenizer.config
        missing = (-video.shape[4] % c.stride, -video.shape[3] % c.stride, -(video.shape[2] - 1) % c.chunk_frames)
        if not any(missing):
            return video
        return torch.nn.functional.pad(video, (0, missing[0], 0, missing[1], 0, missing[2]), mode="replicate")

    def _log_usage(self) -> None:
        for index, usage in enumerate(self.usage, start=1):
            for name, value in usage.compute().items():
                self.log(f"level{index}/{name}", value)
            usage.reset()


def _latent_loss(chunk: QuantizedChunk) -> Tensor:
    """Distance of the latent to each prefix of its pyramid: the levels come to the latent, the latent a little to
    them (VAR, 2404.02905, eq. 5, with beta = 0.25)."""
    latent = chunk.latent.float()
    total = latent.new_zeros(())
    for prefix in map(Tensor.float, chunk.prefixes):
        total = total + (latent.detach() - prefix).square().mean() + 0.25 * (latent - prefix.detach()).square().mean()
    return total / len(chunk.prefixes)


def _coverage(tokenizer: PyramidTokenizer, words: list[list[str]], caption: str) -> float | None:
    """Share of the caption's content words that the word levels of one chunk name; None for a caption without any."""
    wanted = {tokenizer.table.words[i] for i in tokenizer.table.content_ids(caption)}
    said = {word for level in words for word in level}
    return len(wanted & said) / len(wanted) if wanted else None


def train_tokenizer(
    config: TrainTokenizerConfig, out: str | Path, *, callbacks: Sequence[Callback] = (), resume: bool = False
) -> Path:
    """Train, and write to `out`: the model folder itself (config.json, model.safetensors, words.safetensors),
    train_config.yaml, metrics.csv and checkpoints/last.ckpt (for resuming only). Returns `out`.

    Raises ValueError for a config that does not fit the data or, to resume, the run; FileNotFoundError to resume where
    nothing was saved; KeyboardInterrupt when it is stopped, after saving a checkpoint to resume from.
    """
    out = Path(out)
    if resume:
        check_resume(config, out, "train tokenizer")
    lightning.seed_everything(config.run.seed, verbose=False)
    module = TokenizerTraining(config)
    model, run = module.tokenizer.config, config.run
    train, val = make_datasets(config.data, model.num_frames, model.size, model.fps)
    data = ClipData(train, val, batch_size=run.batch_size, num_workers=run.num_workers, seed=run.seed)
    if fit(module, data, config, out, callbacks, resume):
        module.tokenizer.eval().save_pretrained(out)
    return out
