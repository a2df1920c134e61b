"""Training a language model over pyramids: `train_lm(config, out)` learns every task, and both directions, at once.

A step is about one group of clips (curriculum.py): it writes them from what their task gives, a random share of each
block hidden, the text dropped now and then for guidance; or it reads their captions from coarse levels. The video
tokenizer is frozen; clips are tokenized as they come, or come as tokens (token_cache.py). Against exposure bias what
is given holds mistakes, and the targets are what mends them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoTokenizer

from lm.backbone import LMConfig, make_backbone
from lm.conditions import READING, Condition, draw_condition, hinted
from lm.curriculum import MOST_QUESTIONS, Curriculum, Group, MixConfig
from lm.gates import LMGateConfig, climb
from lm.model import PyramidLM
from lm.token_cache import TokenDataset, unpack
from lm.train_data import TokenData, all_but_classes, teachable, texts_of, warn_of_cut
from lm.vocabulary import train_text_tokenizer
from pyramid.data.datamodule import ClipData, collate_clips
from pyramid.data.grammar import either
from pyramid.data.sources import DataConfig, make_datasets
from pyramid.gates import Gate
from pyramid.quantize import BitQuantizer
from pyramid.schedule import RunConfig, training_device
from pyramid.tokenizer import PyramidTokenizer
from pyramid.tokens import TokenPyramid
from pyramid.training import TrainingModule, check_resume, fit, mix_seed
from pyramid.training_forecast import Forecast

# What a step's common draws are for.
_GROUPS, _MASKS = range(2)
_CLIPS = 2  # and what its clips are drawn by
_CHOICES = 9  # wrong class names in a question, at most


@dataclass(frozen=True)
class LMLossConfig:
    """`drop_text`: share of clips written without their text, `drop_text_given` of those that something else is given
    of; `drop_hint`: share of clips whose hint is kept from the model, for guidance by it; `paraphrase`: share of
    prompts in other words, where the data has them. `noise`: the most of the given codes that are replaced at random,
    in a share `noisy` of the clips; `tube`, `whole`: `PyramidLM.generation_loss`. A level of n tokens weighs
    n^`level_power`: a word alone counts for less than a level of bits, but for more than one of its codes."""

    drop_text: float = 0.1
    drop_text_given: float = 0.3
    drop_hint: float = 0.1
    paraphrase: float = 0.5
    noise: float = 0.3
    noisy: float = 0.5
    tube: float = 0.5
    whole: float = 0.5
    level_power: float = 0.5

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")


@dataclass(frozen=True)
class TrainLMConfig:
    """The whole of a language-model run. `tokenizer`: folder or hub id of the video tokenizer; `tokens`: folder of
    clips tokenized once, with `train` and `val` in it, that takes the place of `data`; `initialize`: a folder of a
    PyramidLM to start from, whose config then takes the place of `model`, but for tasks of `model` that it is to
    learn. `compile`: the backbone by torch.compile, minutes at the start for steps a quarter shorter; `checkpointing`:
    keep no activations inside its layers, and compute them again for the gradients: less memory, longer steps."""

    tokenizer: str = ""
    tokens: str | None = None
    model: LMConfig = field(default_factory=LMConfig)
    data: DataConfig = field(default_factory=DataConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    loss: LMLossConfig = field(default_factory=LMLossConfig)
    run: RunConfig = field(default_factory=RunConfig)
    gates: LMGateConfig = field(default_factory=LMGateConfig)
    initialize: str | None = None
    compile: bool = False
    checkpointing: bool = False


class LMTraining(TrainingModule):
    """Batches are those of `ClipData` - `video`, `caption`, and where the data has them `paraphrase` (other words to
    write from) and `seen` (the clip as read from a file, to be captioned as well as the clip itself) - or those of
    `TokenData`. `teaches`: the tasks that the clips have what it takes for; by default all but "class"."""

    def __init__(self, config: TrainLMConfig, lm: PyramidLM, teaches: Sequence[str] | None = None) -> None:
        super().__init__(config.run)
        self.config, self.lm = config, lm.train()  # transformers loads a pretrained backbone in eval mode
        if config.checkpointing:
            lm.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        pyramids = tuple(lm.tokenizer.pyramids(lm.tokenizer.config.num_frames))
        teaches = all_but_classes() if teaches is None else teaches
        known = tuple(
            task for task in lm.config.tasks if task in teaches and _possible(task, lm.num_levels, len(pyramids))
        )
        if any(level > lm.num_levels for level in config.mix.levels):
            raise ValueError(f"mix.levels: expected numbers from 1 to {lm.num_levels}, got {config.mix.levels}")
        text = lm.config.max_text // 2
        self.curriculum = Curriculum(config.mix, pyramids, known, lm.memory, lm.config.caption_detail, text)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.config.compile:
            self.lm.backbone.base_model.compile(dynamic=True)

    def group(self, step: int) -> Group:
        """What a step is about."""
        generator = torch.Generator().manual_seed(mix_seed(self.run.seed, step, 1, _GROUPS))
        return self.curriculum.group(self.schedule.progress(step), generator)

    def seed(self, step: int, rank: int) -> int:
        """Of the clips that a rank draws in a step."""
        return mix_seed(self.run.seed, step, _CLIPS, rank)

    def objective(self, batch: dict) -> Tensor:
        if "ids" in batch:
            group = batch["group"][0]
            tokens, condition = unpack(batch, self.lm.tokenizer)
        else:
            group, condition = self.group(self.step), None
            tokens = self._tokens(batch["video"])
            if group.task in hinted():
                with self.exact():
                    condition = draw_condition(self.lm.tokenizer, group.task, batch["video"], self.generator(_MASKS))
        if group.task in READING:
            loss = self._reading(tokens, batch, group)
            self.log(f"train/{group.task}", loss.detach(), batch_size=tokens.batch_size)
        else:
            loss = self._writing(tokens, condition, batch, group)
        self.log("train/loss", loss.detach(), batch_size=tokens.batch_size)
        return loss

    def _writing(self, tokens: TokenPyramid, condition: Condition | None, batch: dict, group: Group) -> Tensor:
        lm, loss = self.lm, self.config.loss
        tokens = tokens.first(_num_frames(tokens, group.num_chunks, lm.tokenizer), group.num_chunks)
        given = _given(tokens, condition, group, lm.tokenizer)
        if given.hint is not None and loss.drop_hint:
            kept = (torch.rand(tokens.batch_size) >= loss.drop_hint).float().to(self.device)
            given = dataclasses.replace(given, share=tuple(part * kept[:, None, None, None] for part in given.share))
        with self.exact():
            inputs, tokens = self._disturbed(tokens)
        levels = lm.generation_loss(
            tokens.truncate(group.detail),
            self._prompts(batch, group.task),
            group.detail,
            condition=given,
            inputs=inputs.truncate(group.detail),
            picked=group.has,
            tube=loss.tube,
            whole=loss.whole,
        )
        names = {f"train/level{k + 1}": value.detach() for k, value in levels.items()}
        self.log_dict(names, batch_size=tokens.batch_size)
        counts = tokens.pyramids[-1].counts
        weights = {k: counts[k] ** loss.level_power for k in levels}
        return sum((weights[k] * value for k, value in levels.items()), tokens.ids[0][0].new_zeros(())) / sum(
            weights.values()
        )

    def _disturbed(self, tokens: TokenPyramid) -> tuple[TokenPyramid, TokenPyramid]:
        """What is given, with mistakes in part of the clips, and what is then right."""
        loss, levels = self.config.loss, self.lm.tokenizer.levels
        if not loss.noise or not loss.noisy:
            return tokens, tokens
        rate = torch.rand(tokens.batch_size) * loss.noise * (torch.rand(tokens.batch_size) < loss.noisy)
        rate = rate.to(self.device)[:, None, None, None]

        def disturb(index: int, ids: Tensor) -> Tensor:
            quantizer = levels.levels[index].quantizer
            if isinstance(quantizer, BitQuantizer):  # a share of the bits
                places = torch.arange(quantizer.dim, device=ids.device)
                flips = (
                    torch.rand(*ids.shape, quantizer.dim, device=ids.device) < rate[..., None] / 2
                ).long() << places
                return ids ^ flips.sum(dim=-1)
            other = torch.randint_like(ids, quantizer.codebook_size)
            return torch.where(torch.rand(ids.shape, device=ids.device) < rate, other, ids)

        tokenizer, wrong, right = self.lm.tokenizer, [], []
        for chunk, ids in enumerate(tokens.ids):
            grid = tokenizer.latent_grid(tokens.height, tokens.width, first=chunk == 0)
            parts = levels.requantize(ids, grid, disturb)
            wrong.append(tuple(parts[0]))
            right.append(tuple(parts[1]))
        shape = (tokens.num_frames, tokens.height, tokens.width)
        return TokenPyramid(tuple(wrong), *shape), TokenPyramid(tuple(right), *shape)

    def _reading(self, tokens: TokenPyramid, batch: dict, group: Group) -> Tensor:
        """Captions of the clips that have one, or answers of those that have questions; there is at least one."""
        lm, asking = self.lm, group.task == "ask"
        pairs = self._asked(batch) if asking else [[("", caption)] if caption else [] for caption in batch["caption"]]
        told = [row for row, of_clip in enumerate(pairs) if of_clip]
        if not told:
            return sum(parameter.sum() for parameter in lm.parameters()) * 0.0
        seen = self._tokens(batch["seen"]) if "seen" in batch else tokens
        rows = torch.tensor(told, dtype=torch.int64, device=self.device)
        clips = [place for place, row in enumerate(told) for _ in pairs[row]]
        questions, texts = ([lm.text_ids(pair[side]) for row in told for pair in pairs[row]] for side in (0, 1))
        seen = seen.truncate(group.detail)[rows]
        return lm.reading_loss(seen, texts, group.detail, questions if asking else None, clips)

    def _asked(self, batch: dict) -> list[list[tuple[str, str]]]:
        """Questions and their answers for each clip: its own, `MOST_QUESTIONS` of them at most, and which of some class
        names of this batch is its own; none where it has neither."""
        own = [label if isinstance(label, str) else "" for label in batch.get("label", [])]
        labels, asked = sorted(set(own) - {""}), []
        questions = batch.get("questions", [()] * len(batch["caption"]))
        for row, of_clip in enumerate(questions):
            pairs = [tuple(of_clip[index]) for index in torch.randperm(len(of_clip))[:MOST_QUESTIONS].tolist()]
            label = own[row] if labels else ""
            if label and len(labels) > 1:
                others = [other for other in labels if other != label]
                count = int(torch.randint(1, min(_CHOICES, len(others)) + 1, ()))
                chosen = [others[index] for index in torch.randperm(len(others))[:count].tolist()]
                chosen.insert(int(torch.randint(count + 1, ())), label)
                pairs.append((either(chosen), label))
            asked.append(pairs)
        return asked

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        lm = self.lm
        generator = torch.Generator().manual_seed(batch_idx)
        sentences = [lm.text_ids(caption) for caption in batch["caption"]]
        with self.exact():
            tokens = unpack(batch, lm.tokenizer)[0] if "ids" in batch else self._tokens(batch["video"])
            losses = lm.generation_loss(tokens, sentences, lm.num_levels, generator)
            written = lm.caption(tokens) if "caption" in lm.config.tasks else []
        for k, value in losses.items():
            self.log(f"val/level{k + 1}", value, batch_size=len(sentences))
        right = [a == b for a, b in zip(written, batch["caption"], strict=False) if b]
        if right:
            self.log("val/caption_exact", sum(right) / len(right), batch_size=len(right))

    def _tokens(self, video: Tensor) -> TokenPyramid:
        with self.exact():
            return self.lm.tokenizer.encode(video)

    def _prompts(self, batch: dict, task: str) -> list[list[int]]:
        """Text ids of each clip, empty where the text is dropped."""
        loss = self.config.loss
        if task == "unconditional":
            return [[] for _ in batch["caption"]]
        others = batch.get("paraphrase", batch["caption"])
        captions = batch["caption"]
        if task == "class":
            captions = others = batch["label"]
        dropped = loss.drop_text if task in ("generate", "image", "class") else loss.drop_text_given
        draws = torch.rand(len(others), 2).tolist()
        prompts = []
        for caption, other, (drop, reword) in zip(captions, others, draws, strict=True):
            text = other if reword < loss.paraphrase else caption
            prompts.append([] if drop < dropped else self.lm.text_ids(text))
        return prompts

    def inside(self) -> tuple[nn.Module, ...]:
        return (self.lm.backbone.base_model,)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        if not self.lm.config.lora:
            return super().configure_optimizers()
        # Adapters are no matrices to make orthogonal: thin, and one of each pair starts at zero.
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        rate, decay = self.run.learning_rate, self.run.weight_decay
        return [torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=decay)]

    def tokens_per_clip(self) -> int:
        tokenizer = self.lm.tokenizer
        return sum(pyramid.num_tokens for pyramid in tokenizer.pyramids(tokenizer.config.num_frames))


def _possible(task: str, num_levels: int, num_chunks: int) -> bool:
    """Whether clips of so many chunks, in so many levels, can teach a task."""
    if task in ("animate", "continue", "interpolate"):
        return num_chunks > 1
    return task != "refine" or num_levels > 1


def _num_frames(tokens: TokenPyramid, num_chunks: int, tokenizer: PyramidTokenizer) -> int:
    return min(tokens.num_frames, 1 + (num_chunks - 1) * tokenizer.config.chunk_frames)


def _given(tokens: TokenPyramid, condition: Condition | None, group: Group, tokenizer: PyramidTokenizer) -> Condition:
    """The condition of a step on these clips."""
    chunks = 1 if group.task == "animate" else 0 if group.task == "refine" else group.given
    exact = tokens.first(_num_frames(tokens, chunks, tokenizer), chunks) if chunks else None
    if group.task in hinted():
        assert condition is not None and condition.task == group.task  # batches are of one task
        assert condition.hint is not None
        if exact is None:
            return condition
        # As in a window of a long clip: what comes first is known whole.
        hint = dataclasses.replace(condition.hint, ids=exact.ids + condition.hint.ids[chunks:])
        share = tuple(torch.ones_like(part) if i < chunks else part for i, part in enumerate(condition.share))
        return dataclasses.replace(condition, tokens=exact, hint=hint, share=share)
    return Condition(group.task, exact, draft=tokens.truncate(group.given) if group.task == "refine" else None)


def make_lm(config: TrainLMConfig, tokenizer: PyramidTokenizer, texts: Sequence[str]) -> PyramidLM:
    """The untrained model of a config; without a pretrained backbone its text tokenizer is learned from `texts`."""
    if config.initialize:
        lm = PyramidLM.from_pretrained(config.initialize, tokenizer=tokenizer)
        lm.add_tasks(config.model.tasks)
        return lm
    if config.model.backbone:
        text = AutoTokenizer.from_pretrained(config.model.backbone)
    else:
        text = train_text_tokenizer(texts, config.model.text_size)
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
    module, data = prepare(config)
    if fit(module, data, config, out, callbacks, resume, forecast):
        module.lm.eval()
        module.lm.config = dataclasses.replace(module.lm.config, familiar=_familiar(module, data))
        local = Path(config.tokenizer).is_dir()
        named = os.path.relpath(config.tokenizer, out) if local else config.tokenizer
        module.lm.save_pretrained(out, tokenizer=named)
    return out


def _familiar(module: LMTraining, data: ClipData, most: int = 512) -> float | None:
    """How much 99 in 100 of the validation clips, of the first `most`, surprise the model at most; None for none."""
    found: list[Tensor] = []
    for batch in data.val_dataloader():
        if "ids" in batch:
            tokens = unpack(batch, module.lm.tokenizer)[0]
        else:
            tokens = module.lm.tokenizer.encode(batch["video"].to(module.lm.device))
        found.append(module.lm.surprise(tokens).float().cpu())
        if sum(map(len, found)) >= most:
            break
    return round(torch.cat(found).quantile(0.99).item(), 4) if found else None


def prepare(config: TrainLMConfig) -> tuple[LMTraining, ClipData]:
    """The module and the clips of a run, from its seed. Raises ValueError for a config that does not fit the data,
    FileNotFoundError for a missing tokenizer."""
    if not config.tokenizer:
        raise ValueError("train lm: tokenizer: expected the folder of a trained tokenizer, got none")
    lightning.seed_everything(config.run.seed, verbose=False)
    tokenizer = PyramidTokenizer.from_pretrained(config.tokenizer)
    video, run = tokenizer.config, config.run
    train: Dataset
    val: Dataset
    if config.tokens is not None:
        train, val = (TokenDataset(Path(config.tokens) / part, tokenizer) for part in ("train", "val"))
    else:
        train, val = make_datasets(config.data, video.num_frames, video.size, video.fps)
    texts, teaches = texts_of(train), teachable(train)
    model = dataclasses.replace(config.model, tasks=_taught(config, teaches, tokenizer))
    lm = make_lm(dataclasses.replace(config, model=model), tokenizer, texts)
    warn_of_cut(texts, lm)
    kind = TokenData if config.tokens is not None else ClipData
    data = kind(train, val, batch_size=run.batch_size, num_workers=run.num_workers, seed=run.seed)
    return LMTraining(config, lm, teaches), data


def _taught(config: TrainLMConfig, teaches: Sequence[str], tokenizer: PyramidTokenizer) -> tuple[str, ...]:
    """The tasks of `config.model` that the run will teach: a model does not say that it knows the others."""
    mix, num_chunks = config.mix, len(tokenizer.pyramids(tokenizer.config.num_frames))
    shares = dict(mix.tasks) | {"image": mix.tasks.get("generate", 0.0) * max(mix.images_first, mix.images_later)}
    return tuple(
        name
        for name in config.model.tasks
        if name in teaches and shares.get(name, 0.0) > 0 and _possible(name, tokenizer.num_levels, num_chunks)
    )


def check_gates(config: TrainLMConfig, report: Callable[[Gate], None]) -> None:
    """The ladder before a run (`gates.py`): one clip and sixteen of them by heart; a model each, from the run's seed.
    `report` is called with each gate that is passed. Raises GateError at the first that is not."""
    train: Any = prepare(config)[1].train
    items = [train[index] for index in range(min(16, len(train)))]
    device = training_device(config.run.device)

    def make_module() -> LMTraining:
        return prepare(config)[0].to(device)

    tokenizer = make_module().lm.tokenizer
    batch = collate_clips(items)
    tokens = unpack(batch, tokenizer)[0] if "ids" in batch else tokenizer.encode(batch["video"])
    climb(config.gates, tokens, list(batch["caption"]), make_module, report)
