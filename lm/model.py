"""`PyramidLM`: one language model that writes the pyramid from text and text from the pyramid. Read this file first.

Any transformers decoder is the backbone (a small random Llama by default). Around it: embeddings of codes, of levels,
of places and of what the picture looks like so far (context.py), heads (heads.py), the layout of a sequence (layout.py)
and what is given beside text (conditions.py). Training hides a random share of each block; generation fills a block in
one pass or in several (decoding.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from lm import layout, quick
from lm.backbone import LMConfig, merge_adapters
from lm.conditions import Condition, hinted
from lm.context import LatentContext, Seen, context_dim, hint_latents
from lm.decoding import Decoding, write
from lm.folder import read_folder, write_folder
from lm.heads import CodeEmbedding, Point, make_head
from lm.layout import Block
from lm.losses import block_nll, hidden_places, reading_nll
from lm.reading import Answer, answers, asked, log_likelihoods
from lm.vocabulary import Vocabulary
from pyramid.data.grammar import either
from pyramid.levels import check_detail
from pyramid.tokenizer import PyramidTokenizer
from pyramid.tokens import TokenPyramid


class PyramidLM(nn.Module):
    """`tokenizer`: the frozen video tokenizer, not among the parameters, but moved to other devices with them; `text`:
    a transformers text tokenizer with an end-of-text token; `backbone`: the causal LM that `config` describes."""

    tokenizer: PyramidTokenizer

    def __init__(self, config: LMConfig, tokenizer: PyramidTokenizer, text: Any, backbone: nn.Module) -> None:
        super().__init__()
        if text.eos_token_id is None:
            raise ValueError("PyramidLM: the text tokenizer must have an end-of-text token, got none")
        self.config = dataclasses.replace(config, caption_detail=min(config.caption_detail, tokenizer.num_levels))
        self.text, self.backbone = text, backbone
        # Held without registering: its weights are neither trained nor saved here.
        object.__setattr__(self, "tokenizer", tokenizer.eval().requires_grad_(False))
        quantizers = [level.quantizer for level in tokenizer.levels.levels]
        sizes = tuple(quantizer.codebook_size for quantizer in quantizers)
        self.vocabulary = Vocabulary(backbone.get_input_embeddings().num_embeddings, sizes, self.config.tasks)
        dim = backbone.config.hidden_size
        self.special = nn.Embedding(self.vocabulary.num_special, dim)
        self.hidden_token = nn.Parameter(torch.zeros(dim))
        self.codes = nn.ModuleList(CodeEmbedding(quantizer, dim) for quantizer in quantizers)
        self.level = nn.Embedding(len(quantizers), dim)
        self.place = nn.Linear(layout.NUM_FEATURES, dim)
        self.hints = any(task in hinted() for task in self.config.tasks)
        self.seen = nn.Linear(context_dim(tokenizer.config.latent_dim, config.history, self.hints), dim)
        references = ["before", "hint"] if self.hints else ["before"]
        self.copies = nn.ModuleDict(
            {
                str(index): nn.ModuleDict({name: CodeEmbedding(level.quantizer, dim) for name in references})
                for index, level in enumerate(tokenizer.levels.levels)
                if config.copies and not level.given
            }
        )
        self.heads = nn.ModuleList(make_head(quantizer, dim) for quantizer in quantizers)
        self.pointers = nn.ModuleDict(
            {
                level: nn.ModuleDict({name: nn.Linear(dim, self.heads[int(level)].num_groups) for name in references})
                for level in self.copies
            }
        )
        for module in (self.special, self.level, self.codes, self.copies):
            for weight in module.parameters():
                nn.init.normal_(weight, std=0.02) if weight.dim() > 1 else nn.init.zeros_(weight)
        for weight in self.pointers.parameters():
            nn.init.zeros_(weight)

    @property
    def device(self) -> torch.device:
        return self.hidden_token.device

    @property
    def num_levels(self) -> int:
        return self.vocabulary.num_levels

    @property
    def memory(self) -> int:
        """Levels of every chunk that later blocks see as tokens."""
        return self.num_levels if self.config.memory is None else min(self.config.memory, self.num_levels)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PyramidLM:
        super()._apply(fn, recurse)
        self.tokenizer.to(self.device)  # it is no submodule, and must be where its ids are
        return self

    def add_tasks(self, tasks: Sequence[str]) -> None:
        """Room for tasks that the model does not know, to be trained. Raises ValueError for one that shows a clip
        beside exact tokens, where the model has no place for that."""
        new = tuple(task for task in tasks if task not in self.config.tasks)
        if strange := [task for task in new if task in hinted() and not self.hints]:
            raise ValueError(f"PyramidLM.add_tasks: {', '.join(strange)}: expected a model with some of {hinted()}")
        self.config = dataclasses.replace(self.config, tasks=(*self.config.tasks, *new))
        old, place = self.special.weight.data, 1 + len(self.vocabulary.tasks)  # the pad and the tasks, then the details
        self.vocabulary = dataclasses.replace(self.vocabulary, tasks=self.config.tasks)
        fresh = nn.init.normal_(old.new_empty(len(new), old.shape[1]), std=0.02)
        self.special = nn.Embedding.from_pretrained(torch.cat([old[:place], fresh, old[place:]]), freeze=False)

    # ------------------------------------------------------------------------------------------ embedding

    def text_ids(self, sentence: str) -> list[int]:
        """Ids of a prompt or caption, all of them."""
        return self.text(sentence, add_special_tokens=False)["input_ids"]

    def sequence_ids(self, task: str, tokens: TokenPyramid, sentences: Sequence[str]) -> Tensor:
        """A batch as the model reads it, (B, S) int64 in the one id space of `vocabulary`: for "generate" [pad ...]
        [task] [detail] [text] [codes], for "caption" [task] [detail] [codes] [text] [end] [pad ...], the codes chunk by
        chunk, coarse to fine, at the detail of `tokens`. `sentences`: the text of each clip, cut at `max_text` tokens,
        the end counted in."""
        tokens, limit = tokens.to(self.device), self.config.max_text
        texts = [self.text_ids(sentence) for sentence in sentences]
        blocks = layout.blocks_of(tokens.pyramids, tokens.num_levels)
        codes = [self.vocabulary.to_ids(b.level, tokens.ids[b.chunk][b.level].flatten(1)) for b in blocks]
        if task == "generate":
            return torch.cat([self.prefix(task, tokens.num_levels, texts)[0], *codes], dim=1)
        head = self.prefix(task, tokens.num_levels, [[]] * len(texts))[0]
        rows = [torch.tensor([*text, self.text.eos_token_id][:limit], device=self.device) for text in texts]
        tail = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.vocabulary.pad)
        return torch.cat([head, *codes, tail], dim=1)

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Text and special ids (B, S) of the vocabulary -> (B, S, dim)."""
        special = ids >= self.vocabulary.num_text
        text = self.backbone.get_input_embeddings()(ids.masked_fill(special, 0))
        return torch.where(special[..., None], self.special((ids - self.vocabulary.num_text).clamp(min=0)), text)

    def embed_block(self, block: Block, codes: Tensor, seen: Seen, hidden: Tensor | None = None) -> Tensor:
        """codes (B, n), what is seen so far -> (B, n, dim); tokens where `hidden` (B, n) is true show
        nothing of their code."""
        return self.embed_codes(block, codes, hidden) + self.embed_place(block, seen)

    def embed_codes(self, block: Block, codes: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The part of `embed_block` that changes with the codes: (B, n, dim)."""
        x = self.codes[block.level](codes)
        return x if hidden is None else torch.where(hidden[..., None], self.hidden_token.to(x.dtype), x)

    def embed_place(self, block: Block, seen: Seen) -> Tensor:
        """The part of `embed_block` that does not: the level, the place, what is seen. (B, n, dim)"""
        x = self.seen(seen.latent.to(self.seen.weight.dtype)) + self.level.weight[block.level]
        x = x + self.place(layout.position_features(block.chunk, block.grid).to(x))
        for name, (copy, trust) in seen.copies.items():
            x = x + self.copies[str(block.level)][name](copy) * trust.to(x)
        return x

    def points(self, block: Block, seen: Seen, take: Tensor | None = None) -> list[Point]:
        """The codes that the head of a block is pointed at, of its tokens `take` (B, m) or of all."""
        points = []
        for name, (copy, trust) in seen.copies.items():
            trust = trust[..., 0]
            if take is not None:
                copy, trust = copy.gather(1, take), trust.gather(1, take)
            points.append(Point(copy, trust, self.pointers[str(block.level)][name]))
        return points

    def context(self, batch_size: int, height: int, width: int, shown: Sequence[Tensor] = ()) -> LatentContext:
        """What the blocks of clips of this size see of the pixels; `shown`: a hint's latents (`hint_latents`)."""
        c = self.config
        return LatentContext(
            self.tokenizer,
            batch_size,
            height,
            width,
            history=c.history,
            copies=c.copies,
            hints=self.hints,
            shown=shown,
        )

    def prefix(self, task: str, detail: int, sentences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """[pad ...] [task] [detail] [text, at most `max_text`] -> ids (B, P), number of pads (B,)."""
        sentences = [sentence[: self.config.max_text] for sentence in sentences]
        head = [self.vocabulary.task(task), self.vocabulary.detail(detail)]
        length = len(head) + max(len(sentence) for sentence in sentences)
        pads = [length - len(head) - len(sentence) for sentence in sentences]
        rows = [[self.vocabulary.pad] * p + head + list(s) for p, s in zip(pads, sentences, strict=True)]
        return torch.tensor(rows, device=self.device), torch.tensor(pads, device=self.device)

    def run(
        self,
        x: Tensor,
        intervals: Tensor,
        positions: Tensor,
        cache: Cache | None = None,
        take: Tensor | None = None,
    ) -> Tensor:
        """Backbone without its head: (B, S, dim), or of the tokens `take` (B, m) alone. x (B, S, dim), intervals
        (B, S, 4) over all keys, positions (B, S). Compiled code (`nn.Module.compile`) is for training alone."""
        body = self.backbone.base_model
        out = (body if torch.is_grad_enabled() else body.forward)(
            inputs_embeds=x,
            intervals=intervals,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state if take is None else quick.picked(out.last_hidden_state, take)

    def runner(self) -> quick.Forward:
        """`run` with the weights as they are now, for many passes of inference: by quick.py where it can be."""
        return quick.pack(self.backbone) if quick.usable(self.backbone) else self.run

    # ------------------------------------------------------------------------------------------ training

    def generation_loss(
        self,
        tokens: TokenPyramid,
        sentences: Sequence[Sequence[int]],
        detail: int,
        generator: torch.Generator | None = None,
        *,
        condition: Condition | None = None,
        inputs: TokenPyramid | None = None,
        picked: Callable[[Block], bool] = lambda block: True,
        tube: float = 0.0,
        whole: float = 0.5,
    ) -> dict[int, Tensor]:
        """Mean negative log-likelihood of the hidden codes of each level, in nats a token: {level from 0: scalar}.

        Args:
            tokens: the clips to write. sentences: text ids of each clip, empty for none.
            detail: levels to write. generator: of what is hidden.
            condition: what is given beside the text; blocks whose tokens are given are not counted.
            inputs: what earlier blocks are seen to be, `tokens` themselves by default (`requantize`).
            picked: which blocks are counted; all by default, at least one of those that are not given.
            tube: share of clips in which a block that has several grids in time hides the same places in each of them
                (Lumos-1, 2507.08801: else a later one is learned by copying an earlier one).
            whole: share of blocks of which every token is hidden, as the first pass of generation sees them.
        """
        losses: dict[int, list[Tensor]] = {}
        given, seen = Condition() if condition is None else condition, tokens if inputs is None else inputs
        hide = partial(hidden_places, batch_size=len(sentences), generator=generator, tube=tube, whole=whole)
        for block, nll, hidden in block_nll(self, tokens, sentences, detail, given, seen, picked, hide):
            losses.setdefault(block.level, []).append((nll * hidden).sum() / hidden.sum())
        return {level: torch.stack(values).mean() for level, values in losses.items()}

    @torch.inference_mode()
    def surprise(self, tokens: TokenPyramid, detail: int | None = None) -> Tensor:
        """How unexpected clips are to a model that is told nothing of them: nats a token (B,) of their first `detail`
        levels (default `caption_detail`), each block at once. What the model was trained on is at or below
        `config.familiar`, where that was measured."""
        detail = check_detail(self.config.caption_detail if detail is None else detail, self.num_levels, "surprise")
        tokens = tokens.truncate(detail).to(self.device)
        hide = partial(hidden_places, batch_size=tokens.batch_size, generator=None, tube=0.0, whole=1.0)
        texts: list[list[int]] = [[] for _ in range(tokens.batch_size)]
        parts = block_nll(self, tokens, texts, detail, Condition(), tokens, lambda block: True, hide)
        return torch.cat([nll for _, nll, _ in parts], dim=1).mean(dim=1)

    def reading_loss(
        self,
        tokens: TokenPyramid,
        sentences: Sequence[Sequence[int]],
        detail: int,
        questions: Sequence[Sequence[int]] | None = None,
        clips: Sequence[int] | None = None,
    ) -> Tensor:
        """Mean negative log-likelihood of the text ids of captions, or answers where there are `questions`, and their
        end, read from `detail` levels; scalar. Of these as many count as are written: a text that is cut at `max_text`
        has no end. `clips`: which clip of `tokens` each text is of, one after the other by default; of one clip there
        may be several answers, which don't see each other and cost little more than one. Raises ValueError for several
        captions of a clip."""
        return reading_nll(self, tokens, sentences, detail, questions, clips)

    def seen_of(
        self,
        tokens: TokenPyramid,
        blocks: Sequence[Block],
        codes: Sequence[Tensor],
        condition: Condition,
        wanted: Iterable[int],
    ) -> dict[int, Seen]:
        """What the `wanted` of the blocks see, by their index."""
        shown = hint_latents(self.tokenizer, condition)
        context = self.context(tokens.batch_size, tokens.height, tokens.width, shown)
        seen, wanted = {}, set(wanted)
        for index, (block, code) in enumerate(zip(blocks, codes, strict=True)):
            if index in wanted:
                seen[index] = context.at(block)
            context.add(block, code)
        return seen

    # ------------------------------------------------------------------------------------------ use

    @torch.inference_mode()
    def caption(self, video: Tensor | TokenPyramid, detail: int | None = None, **decoding: Any) -> list[str]:
        """One sentence a clip, the most likely word at each step, read from the first `detail` levels (default
        `caption_detail`). video: (B, 3, T, H, W) in [-1, 1], or its tokens. `decoding`: as `answers` of reading.py:
        beams, temperature, ... Raises ValueError for no clip, a detail that there is not, and what the tokenizer
        refuses."""
        return [answer.text for answer in answers(self, asked(self, "caption", video, None, detail), **decoding)]

    @torch.inference_mode()
    def ask(
        self,
        video: Tensor | TokenPyramid,
        questions: str | Sequence[str] | None,
        detail: int | None = None,
        **decoding: Any,
    ) -> list[Answer]:
        """An answer a clip and its confidence: one question for all clips or one a clip; a caption of each for None.
        The other arguments are those of `caption`. Raises ValueError besides for another number of questions and a
        model that was not taught questions."""
        return answers(
            self, asked(self, "caption" if questions is None else "ask", video, questions, detail), **decoding
        )

    @torch.inference_mode()
    def classify(
        self,
        video: Tensor | TokenPyramid,
        labels: Sequence[str],
        question: str | None = None,
        detail: int | None = None,
    ) -> Tensor:
        """Probabilities (B, len(labels)), which sum to 1: how likely each label is as the answer to `question`, by
        default to `a, b or c?`. Raises ValueError as `ask`, for fewer than two labels, and for one that is longer than
        the model's answers."""
        if len(set(labels)) < 2 or len(set(labels)) < len(labels):
            raise ValueError(f"PyramidLM.classify: expected at least two labels, each once, got {list(labels)}")
        question = either(labels) if question is None else question
        return self.log_likelihoods(video, labels, question, detail).softmax(dim=1)

    @torch.inference_mode()
    def log_likelihoods(
        self,
        video: Tensor | TokenPyramid,
        texts: Sequence[str],
        question: str | None = None,
        detail: int | None = None,
    ) -> Tensor:
        """Log-probability (B, len(texts)) of each text as the answer to `question`, or as the caption. Raises
        ValueError as `ask`, and for a text that is longer than the model's answers."""
        reading = asked(self, "caption" if question is None else "ask", video, question, detail)
        return log_likelihoods(self, reading, texts)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        detail: int | None = None,
        *,
        condition: Condition | None = None,
        num_frames: int | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        negative: Sequence[str] | str = "",
        on_block: Callable[[int, int, tuple[Tensor, ...]], None] | None = None,
        forced: TokenPyramid | None = None,
        **decoding: Any,
    ) -> TokenPyramid:
        """Write the pyramids of clips from text and from what is given, coarse to fine, block by block.

        Args:
            prompts: one a clip, "" for none; a `TextWarning` tells of one that is longer than the model reads.
            detail: levels to write, all by default.
            condition: what is given beside text (conditions.py), for clips of this length and size.
            num_frames, size (height, width): the tokenizer's training size by default, or those of the condition.
            seed: clip i is drawn with seed + i.
            negative: what the clips are driven away from, one text or one a clip; needs guidance.
            on_block: called with chunk, level (both from 0) and the ids of the chunk so far, (B, t, h, w) a level,
                when a block is done.
            forced: tokens that take the place of each block once it is drawn, so that all that is drawn follows on
                them (block-forced); what was drawn is returned.
            decoding: fields of `Decoding` that differ from the model's own for this task: decoder, passes, ...

        Returns tokens of `detail` levels.

        Raises TypeError for a single string as `prompts`, ValueError for no prompt, any number out of range, a task
        that the model does not know, and a condition that does not fit.
        """
        if isinstance(prompts, str):
            raise TypeError(f"PyramidLM.generate: expected a list of prompts, one a clip, got the string {prompts!r}")
        task = "generate" if condition is None else condition.task
        settings = dataclasses.replace(self.decoding(task), **decoding)
        return write(
            self,
            prompts,
            check_detail(detail, self.num_levels, "PyramidLM.generate"),
            Condition(task) if condition is None else condition,
            settings,
            num_frames=num_frames,
            size=size,
            seed=seed,
            negative=negative,
            on_block=on_block,
            forced=forced,
        )

    def decoding(self, task: str) -> Decoding:
        """How this model writes for a task unless told otherwise. Raises ValueError for a task it does not know."""
        self.vocabulary.task(task)
        return self.config.decoding.get(task, self.config.decoding.get("", Decoding()))

    # ------------------------------------------------------------------------------------------ folders

    def merged(self) -> PyramidLM:
        """This model with its LoRA adapters added to the backbone's weights, which no longer needs its base."""
        if not self.config.lora:
            return self
        self.backbone = merge_adapters(self.backbone)
        self.config = dataclasses.replace(self.config, lora=0)
        return self

    def save_pretrained(self, folder: str | Path, *, tokenizer: str = "../tokenizer", half: bool = False) -> None:
        """Write config.json, model.safetensors (all but the backbone), backbone/ (a transformers folder with the text
        tokenizer; with LoRA a peft folder, whose base is named in the config). `tokenizer`: where the video
        tokenizer's folder is, relative to this one, or a hub id; `half`: store float16. Every file appears whole,
        config.json as the last."""
        write_folder(self, Path(folder), tokenizer, torch.float16 if half else torch.float32)

    @staticmethod
    def from_pretrained(
        model: str | Path, *, tokenizer: PyramidTokenizer | None = None, device: torch.device | str = "cpu"
    ) -> PyramidLM:
        """Load a folder that `save_pretrained` wrote, ready for inference. `tokenizer` replaces the one it names,
        and is moved to `device` too.

        Raises FileNotFoundError for a missing folder or file, ValueError for another format, keys of config.json that
        are missing or unknown, or weights that don't fit.
        """
        return read_folder(PyramidLM, model, tokenizer, device)
