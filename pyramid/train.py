"""Training a tokenizer: `train_tokenizer(config, out)` fits, validates per detail and writes a model folder.

The objective: pixels at a random detail of each clip (so that every prefix decodes), the quantizers' own losses, the
latent's distance to each prefix of the pyramid, and meaning on the word levels (`semantic.py`). Early in the
run part of the clips skips quantization, so that encoder and decoder learn from clean gradients first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from pyramid.adversarial import Adversary, AdversaryConfig
from pyramid.collapse import CollapseWarning, CollapseWatch, sentence
from pyramid.data.datamodule import ClipData
from pyramid.data.jitter import jitter
from pyramid.data.sources import DataConfig, make_datasets
from pyramid.distributed import all_ranks, gather_objects, gather_rows, mean_over_ranks, my_rows, num_ranks, rank
from pyramid.gates import Gate, GateConfig, climb
from pyramid.losses import reconstruction_loss
from pyramid.metrics import CodeUsage, psnr
from pyramid.optim import MuonAdamW
from pyramid.perceptual import PerceptualConfig, PerceptualLoss
from pyramid.quantize import BitQuantizer, QuantizedChunk, VectorQuantizer
from pyramid.schedule import RunConfig, anneal, training_device
from pyramid.semantic import SemanticConfig, SemanticObjective, dynamic_weight
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig, TrainingOutput
from pyramid.tokens import TokenPyramid
from pyramid.training import TrainingModule, check_resume, fit
from pyramid.training_forecast import Forecast
from pyramid.words import WordTable

# What a step's common draws are for.
_DETAILS, _IMAGES, _FRAMES, _RESTARTS = range(4)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms. `semantic_first`: of the first frame's words relative to the other chunks'; `unquantized`:
    share of clips that skip quantization at the start, falling to none at `unquantized_until` of the run;
    `full_detail`: share of the other clips trained at full detail, the rest at a random one.

    `entropy`: weight of the bit levels' entropy objective among the quantizers' own; it starts `entropy_boost` times as
    high, and the temperature of the bits' probabilities `temperature_boost` times, both falling to 1 at `boost_until`
    of the run. `perceptual` and `adversarial` are 0 for none; `perceptual` and `adversary` beside this section say
    more.
    """

    reconstruction: float = 1.0
    quantizer: float = 0.1
    latent: float = 0.25
    semantic: float = 2.0
    semantic_first: float = 0.5
    unquantized: float = 0.5
    unquantized_until: float = 0.5
    full_detail: float = 0.5
    entropy: float = 0.1
    entropy_boost: float = 1.0
    temperature_boost: float = 1.0
    boost_until: float = 0.2
    perceptual: float = 0.0
    adversarial: float = 0.0

    def __post_init__(self) -> None:
        for name in ("entropy", "perceptual", "adversarial"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("entropy_boost", "temperature_boost"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainTokenizerConfig:
    """The whole of a tokenizer run. `run`: length, batch and optimizer; `words`: the word table, a file that `pyramid
    data words` wrote, by default the one that ships; `initialize`: a model folder to start from, whose config and words
    then take the place of `model` and `words`. `learns`: "encoder" leaves the levels and the decoder as they are, and
    so what a code means to a language model; "words" trains the encoder and the reader of words on their meaning alone,
    "reader" that reader alone (`train_words.py`): nothing is decoded, and a step is five times as short. After "words"
    comes a run that learns the encoder or all, for what a pixel looks like hangs on the words."""

    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    run: RunConfig = field(default_factory=RunConfig)
    gates: GateConfig = field(default_factory=GateConfig)
    words: str | None = None
    initialize: str | None = None
    learns: Literal["all", "encoder", "words", "reader"] = "all"


class TokenizerTraining(TrainingModule):
    """Batches are those of `ClipData`. The encoder sees `seen` where a batch has it, the decoder is to give `video`."""

    def __init__(self, config: TrainTokenizerConfig) -> None:
        super().__init__(config.run)
        self.config = config
        if config.initialize:
            self.tokenizer = PyramidTokenizer.from_pretrained(config.initialize).train()
        else:
            self.tokenizer = PyramidTokenizer(config.model, WordTable.load(config.words) if config.words else None)
        if config.learns != "all":
            self.tokenizer.levels.requires_grad_(False)
            self.tokenizer.decoder.requires_grad_(False)
        self.semantic = None
        if self.tokenizer.table is not None and self.tokenizer.word_levels:
            self.semantic = SemanticObjective(config.semantic, self.tokenizer.table)
        self.perceptual = PerceptualLoss(config.perceptual) if config.loss.perceptual > 0 else None
        self.adversary = Adversary(config.adversary) if config.loss.adversarial > 0 else None
        self.count_usage()
        self.val_psnr: list[list[list[float]]] = []  # of each batch, by detail and clip
        self.val_hits: list[float] = []

    def count_usage(self) -> None:
        """Count the codes of every level of `tokenizer` from here on."""
        self.usage = [CodeUsage(level.quantizer.codebook_size) for level in self.tokenizer.levels.levels]
        self.watch = CollapseWatch(len(self.usage))

    # ------------------------------------------------------------------------------------------ steps

    def sample_detail(self, batch_size: int) -> Tensor:
        """A detail for each clip, 1 .. num_levels, or num_levels + 1 for no quantization. Drawn for the joint batch of
        all ranks, of which each takes its rows."""
        loss, num_levels, count = self.config.loss, self.tokenizer.num_levels, batch_size * num_ranks()
        generator = self.generator(_DETAILS)
        detail = torch.randint(1, num_levels + 1, (count,), generator=generator)
        full, skipped = torch.rand(2, count, generator=generator)
        detail = torch.where(full < loss.full_detail, num_levels, detail)
        share = loss.unquantized * max(0.0, 1 - self.schedule.progress(self.step) / max(loss.unquantized_until, 1e-9))
        return my_rows(torch.where(skipped < share, num_levels + 1, detail)).to(self.device)

    def on_train_start(self) -> None:
        for level in self.tokenizer.levels.levels:
            if isinstance(level.quantizer, BitQuantizer):
                level.quantizer.process_group = all_ranks()

    def training_step(self, batch: dict, batch_idx: int) -> None:
        out, video = self.reconstruct(batch)
        total = self.total(out, video, batch)
        optimizers = self.trained_by()
        self.descend(optimizers[0], total)
        if self.config.learns == "all":
            self.update_codebooks(out.chunks)
        if self.adversary is not None and self.adversary_plays():
            with self.exact():
                loss, terms = self.adversary.for_discriminator(video, out.video, self.step)
            self.descend(optimizers[1], loss)
            self.adversary.remember(terms)
            figures = {f"adversary/{name}": value for name, value in terms.items()}
            self.log_dict(figures, batch_size=len(video), sync_dist=num_ranks() > 1)
        for chunk in out.chunks:
            for usage, ids in zip(self.usage, chunk.ids, strict=True):
                usage.update(ids)
        if self.logs_now():
            self._log_usage()
        self.end_step()

    def objective(self, batch: dict) -> Tensor:
        return self.total(*self.reconstruct(batch), batch)

    def reconstruct(self, batch: dict) -> tuple[TrainingOutput, Tensor]:
        """One pass, each clip at a detail of its own; and the video (B, 3, T, H, W) that was to come out: the clips or,
        in a share of the steps, one frame of each."""
        self._anneal()
        video, seen = self.jittered(batch)
        generator = self.generator(_IMAGES)
        if torch.rand((), generator=generator) < self.config.data.image_share:
            frame = int(torch.randint(video.shape[2], (), generator=generator))
            video, seen = video[:, :, frame : frame + 1], seen[:, :, frame : frame + 1]
        video = self._whole_chunks(video)
        return self.tokenizer(self._whole_chunks(seen), self.sample_detail(len(video))), video

    def jittered(self, batch: dict) -> tuple[Tensor, Tensor]:
        """The clips of a batch and what is seen of them, moved as `data.jitter` says."""
        video, seen, strength = batch["video"], batch.get("seen"), self.config.data.jitter
        if not strength:
            return video, video if seen is None else seen
        seed = int(torch.randint(1 << 62, ()))  # one for both, that they are moved alike
        moved = jitter(video, strength, torch.Generator().manual_seed(seed))
        return moved, moved if seen is None else jitter(seen, strength, torch.Generator().manual_seed(seed))

    def total(self, out: TrainingOutput, video: Tensor, batch: dict) -> Tensor:
        """The tokenizer's loss, scalar; logs its terms."""
        weights, terms = self.config.loss, self.losses(out, video, batch)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(out.video, video, self.generator(_FRAMES))
        if self.adversary is not None and self.adversary_plays():
            with self.exact():
                terms["adversarial"] = self.adversary.for_generator(out.video)
        names = ("reconstruction", "quantizer", "latent", "perceptual", "adversarial")
        total = sum(getattr(weights, name) * terms[name] for name in names if name in terms)
        pull = 1.0
        if self.config.semantic.dynamic:
            pull = dynamic_weight(mean_over_ranks(total), mean_over_ranks(terms["semantic"]))
        total = total + weights.semantic * pull * terms["semantic"]
        figures = {f"train/{name}": torch.as_tensor(value).detach() for name, value in terms.items()}
        self.log_dict(figures | {"train/loss": total.detach()}, batch_size=len(video), sync_dist=num_ranks() > 1)
        return total

    def adversary_plays(self) -> bool:
        return self.step >= self.config.adversary.start

    def update_codebooks(self, chunks: Sequence[QuantizedChunk]) -> None:
        """Move the learned codebooks to what all ranks quantized in this step."""
        for index, level in enumerate(self.tokenizer.levels.levels):
            if isinstance(level.quantizer, VectorQuantizer):
                x = torch.cat([gather_rows(chunk.queries[index].float()).flatten(0, 3) for chunk in chunks])
                ids = torch.cat([gather_rows(chunk.ids[index]).flatten() for chunk in chunks])
                level.quantizer.update(x, ids, self.generator(_RESTARTS))

    def _anneal(self) -> None:
        loss, progress = self.config.loss, self.schedule.progress(self.step)
        for level in self.tokenizer.levels.levels:
            if isinstance(level.quantizer, BitQuantizer):
                level.quantizer.entropy = loss.entropy * anneal(loss.entropy_boost, progress, loss.boost_until)
                level.quantizer.temperature = anneal(loss.temperature_boost, progress, loss.boost_until)

    def losses(self, out: TrainingOutput, video: Tensor, batch: dict) -> dict[str, Tensor]:
        """Unweighted terms, scalars; `words_hit`: share of the words that the teacher asks for that some token of the
        last chunk names. `batch` is what the teacher reads."""
        terms = {"reconstruction": reconstruction_loss(out.video, video)}
        terms["quantizer"] = sum(loss for chunk in out.chunks for loss in chunk.losses)
        terms["latent"] = torch.stack([_latent_loss(chunk) for chunk in out.chunks]).sum()
        terms["semantic"], terms["words_hit"] = video.new_zeros(()), 0.0
        if self.semantic is not None:
            levels = self.tokenizer.word_levels
            queries = [[chunk.queries[level] for level in levels] for chunk in out.chunks]
            terms["semantic"], terms["words_hit"] = self.meaning(queries, video, batch)
        return terms

    def meaning(self, queries: Sequence[Sequence[Tensor]], video: Tensor, batch: dict) -> tuple[Tensor, float]:
        """The semantic loss, scalar, of what the word levels of each chunk were asked for, and `words_hit`."""
        assert self.semantic is not None
        levels = self.tokenizer.word_levels
        embeddings = self.tokenizer.levels.levels[levels[0]].quantizer.embeddings
        step = self.tokenizer.config.chunk_frames
        frames = [video[:, :, :1], *video[:, :, 1:].split(step, dim=2)] if video.shape[2] > 1 else [video]
        total, hit = video.new_zeros(()), 0.0
        with self.exact():
            # Those of a whole chunk: a single frame has fewer, and its assignment takes what it shows best.
            whole_chunk = self.tokenizer.pyramids(1 + step, *video.shape[3:])[-1]
            num_positions = sum(whole_chunk.levels[level].count for level in levels)
            lesson = self.semantic.to(self.device).lesson(batch, num_positions)  # gates and forecasts have no trainer
            for index, (chunk, pixels) in enumerate(zip(queries, frames, strict=True)):
                loss, hit = self.semantic([query.float() for query in chunk], embeddings, lesson, pixels)
                whole = index or len(queries) == 1  # beside the others, one frame does not show it all
                total = total + loss * (1.0 if whole else self.config.loss.semantic_first)
        return total, hit

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        with self.exact():
            tokens = self.tokenizer.encode(batch["video"])
            self.val_psnr.append(
                [psnr(self.tokenizer.decode(tokens, k + 1), batch["video"]).tolist() for k in range(tokens.num_levels)]
            )
        self.val_hits += self.words_hit(tokens, batch["caption"])

    def words_hit(self, tokens: TokenPyramid, captions: Sequence[str]) -> list[float]:
        """For each clip whose caption has content words the share of them that the last chunk's word levels name."""
        if self.tokenizer.table is None or not self.tokenizer.word_levels:
            return []
        hits = [
            _coverage(self.tokenizer, clip[-1], caption)
            for clip, caption in zip(self.tokenizer.words(tokens), captions, strict=True)
        ]
        return [hit for hit in hits if hit is not None]

    def on_validation_epoch_end(self) -> None:
        ranks = gather_objects((self.val_psnr, self.val_hits))
        batches = [batch for psnrs, _ in ranks for batch in psnrs]
        hits = [hit for _, part in ranks for hit in part]
        for k, values in enumerate(zip(*batches, strict=True), start=1):
            self.log(f"val/psnr_detail{k}", sum(sum(part) for part in values) / sum(len(part) for part in values))
        if hits:
            self.log("val/words_hit", sum(hits) / len(hits))
        self.val_psnr.clear()
        self.val_hits.clear()

    def inside(self) -> tuple[nn.Module, ...]:
        reader = self.tokenizer.reader
        return (self.tokenizer.encoder, self.tokenizer.decoder, *([] if reader is None else [reader]))

    def _whole_chunks(self, video: Tensor) -> Tensor:
        """Fill a clip up to whole chunks and strides, as inference does."""
        c = self.tokenizer.config
        missing = (-video.shape[4] % c.stride, -video.shape[3] % c.stride, -(video.shape[2] - 1) % c.chunk_frames)
        if not any(missing):
            return video
        return torch.nn.functional.pad(video, (0, missing[0], 0, missing[1], 0, missing[2]), mode="replicate")

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        run = self.config.run
        optimizer = MuonAdamW(self.tokenizer, self.inside(), lr=run.learning_rate, weight_decay=run.weight_decay)
        return [optimizer, *([self.adversary.optimizer()] if self.adversary is not None else [])]

    def tokens_per_clip(self) -> int:
        return sum(pyramid.num_tokens for pyramid in self.tokenizer.pyramids(self.tokenizer.config.num_frames))

    def heaviest_step(self) -> int:
        return self.config.adversary.start if self.adversary is not None else 0

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["usage"] = [usage.counts for usage in self._joint_usage()]
        checkpoint["watch"] = self.watch.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self.watch.load_state_dict(checkpoint["watch"])
        if rank() == 0:
            for usage, counts in zip(self.usage, checkpoint["usage"], strict=True):
                usage.merge(counts)

    def _joint_usage(self) -> list[CodeUsage]:
        """The codes that all ranks have counted."""
        joint = [CodeUsage(usage.codebook_size) for usage in self.usage]
        for counts in gather_objects([usage.counts for usage in self.usage]):
            for usage, part in zip(joint, counts, strict=True):
                usage.merge(part)
        return joint

    def _log_usage(self) -> None:
        joint = self._joint_usage()
        for index, usage in enumerate(joint, start=1):
            for name, value in usage.compute().items():
                self.log(f"level{index}/{name}", value)
        if self.step >= self.run.warmup_steps:
            for index in self.watch(joint):
                quantizer = self.tokenizer.levels.levels[index].quantizer
                rank_zero_warn(sentence(index, joint[index], quantizer, self.config.loss), category=CollapseWarning)
        for usage in self.usage:
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
    config: TrainTokenizerConfig,
    out: str | Path,
    *,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    forecast: Callable[[Forecast], None] | None = None,
) -> Path:
    """Train, and write to `out`: the model folder itself (config.json, model.safetensors, words.safetensors),
    train_config.yaml, metrics.csv and checkpoints/last.ckpt (for resuming only). Returns `out`. `forecast` is called
    before the run with what a few real steps tell of it.

    Raises ValueError for a config that does not fit the data or, to resume, the run; FileNotFoundError to resume where
    nothing was saved; KeyboardInterrupt when it is stopped, after saving a checkpoint to resume from.
    """
    out = Path(out)
    if resume:
        check_resume(config, out, "train tokenizer")
    module, data = prepare(config)
    if fit(module, data, config, out, callbacks, resume, forecast):
        module.tokenizer.eval().save_pretrained(out)
    return out


def prepare(config: TrainTokenizerConfig) -> tuple[TokenizerTraining, ClipData]:
    """The module and the clips of a run, from its seed. Raises ValueError for a config that does not fit the data."""
    from pyramid.train_words import WordTraining

    lightning.seed_everything(config.run.seed, verbose=False)
    module = WordTraining(config) if config.learns in ("words", "reader") else TokenizerTraining(config)
    model, run = module.tokenizer.config, config.run
    train, val = make_datasets(config.data, model.num_frames, model.size, model.fps)
    return module, ClipData(train, val, batch_size=run.batch_size, num_workers=run.num_workers, seed=run.seed)


def check_gates(config: TrainTokenizerConfig, report: Callable[[Gate], None]) -> None:
    """The ladder before a run (`gates.py`): its clips, then one and sixteen of them by heart; a model each, from the
    run's seed. `report` is called with each gate that is passed. Raises GateError at the first that is not."""
    loss = replace(config.loss, unquantized=0.0, full_detail=1.0, perceptual=0.0, adversarial=0.0)
    plain = replace(config, loss=loss, data=replace(config.data, image_share=0.0, jitter=0.0), learns="all")

    def make_module() -> TokenizerTraining:
        return prepare(plain)[0].to(training_device(plain.run.device))

    train = prepare(plain)[1].train
    climb(config.gates, train, make_module, report)
