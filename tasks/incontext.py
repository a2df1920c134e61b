"""`pyramid incontext`: a frozen language model that never saw a pixel classifies, captions and makes clips, from the
words at the top of their pyramids and a few examples (SPAE, 2306.17842)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tasks.batches import side_by_side
from tasks.console import DONE, Console, user_can_mend
from tasks.files import claim, find_clips
from tasks.options import Device, Json, Model, Out, Overwrite, Seed, check_device, parse_labels
from tasks.reading import Load, shown_clips

if TYPE_CHECKING:
    from torch import Tensor

    from lm.incontext import Example, Reply
    from lm.llm import LanguageModel
    from lm.model import PyramidLM
    from pyramid.tokenizer import PyramidTokenizer

WHAT = ("classify", "caption", "generate")
_LABEL, _CAPTION, _WORD = 16, 48, 4  # tokens of a reply at most; of a word


def incontext(
    what: Annotated[str, typer.Argument(help="classify, caption or generate.", show_default=False)],
    given: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...|PROMPT", help="Clips, or what to generate.", show_default=False),
    ],
    examples: Annotated[
        Path,
        typer.Option("--examples", "-e", help="Clips with labels or captions in metadata.jsonl.", show_default=False),
    ],
    llm: Annotated[str, typer.Option("--llm", help="A transformers model, or its name on a server.")],
    shots: Annotated[int, typer.Option("--shots", "-k", min=0, help="Examples; of each label, to classify.")] = 3,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Between commas; by default those of the examples.")
    ] = None,
    detail: Annotated[
        int | None, typer.Option("--detail", "-d", min=1, help="Levels of words to show; all by default.")
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish/--words-only", help="Of generate: write the finer levels by our own model.")
    ] = True,
    mend: Annotated[
        int, typer.Option("--mend", min=0, help="Of generate: how often each level is looked over (denoising).")
    ] = 0,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="A server with OpenAI's interface; its key in OPENAI_API_KEY.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that a server has for a reply.")] = 60.0,
    retries: Annotated[int, typer.Option("--retries", min=0, help="Of a request that fails in passing.")] = 4,
    cache: Annotated[Path, typer.Option("--cache", help="Replies are kept there, and not asked for again.")] = Path(
        "runs/incontext/replies"
    ),
    price_in: Annotated[float, typer.Option("--price-in", min=0.0, help="Of a million tokens of prompts.")] = 0.0,
    price_out: Annotated[float, typer.Option("--price-out", min=0.0, help="Of a million tokens of replies.")] = 0.0,
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", min=0.0, help="Ask nothing that may cost more.")
    ] = None,
    out: Out = Path("runs/incontext/clip.mp4"),
    model: Model = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Classify, caption or make clips by any language model, from the words of their pyramids and a few examples."""
    with Console("incontext", as_json, writes=what == "generate") as console:
        if what not in WHAT:
            raise ValueError(f"expected one of {', '.join(WHAT)}, got {what!r}")
        setting = _Setting.of(model, device, detail, seed, console)
        asked = set() if what == "generate" else {path.resolve() for path in find_clips(given)}
        known = setting.examples(examples, "label" if what == "classify" else "caption", asked)

        def connect() -> LanguageModel:
            return _connect(llm, base_url, timeout, retries, cache, device)

        if max_cost is not None and not price_in + price_out:
            raise ValueError("--max-cost: expected --price-in or --price-out beside it, got none")
        spending = _Spending(price_in, price_out, max_cost)
        if what == "generate":
            claim([out], overwrite)
            lm = _finisher(model, device) if finish else None
            return _generate(
                setting, " ".join(given), setting.choose(known, shots), connect(), spending, lm, mend, out, overwrite
            )
        from lm.incontext import answer_prompt, read_caption, read_label

        if what == "caption":
            chosen = setting.choose(known, shots)

            def captioning(words: list[list[str]]) -> str:
                return answer_prompt(chosen, words, what="caption", detail=setting.detail)

            return setting.answer(given, connect(), captioning, read_caption, "caption", _CAPTION, spending)
        there = {answer for answer, _ in known}
        names = parse_labels(labels) if labels else sorted(there)
        if shots and (missing := [name for name in names if name not in there]):
            raise ValueError(f"--labels: {examples}: expected examples of each label, found none of {missing[0]!r}")
        chosen = setting.choose(known, shots, names)

        def choosing(words: list[list[str]]) -> str:
            return answer_prompt(chosen, words, labels=names, detail=setting.detail)

        return setting.answer(
            given, connect(), choosing, lambda reply: read_label(reply, names), "label", _LABEL, spending
        )


def _generate(
    setting: _Setting,
    prompt: str,
    examples: list[Example],
    llm: LanguageModel,
    spending: _Spending,
    lm: PyramidLM | None,
    mend: int,
    out: Path,
    overwrite: bool,
) -> int:
    """The language model writes the words, level by level, and looks each level over `mend` times; ours the finer
    levels."""
    from lm.editing import whole
    from lm.incontext import denoising_prompt, read_words, words_prompt
    from tasks.writing import write_pieces

    table, counts = setting.tokenizer.table, setting.counts
    assert table is not None
    likely = [["word"] * count for count in counts]
    asked = [(words_prompt(examples, prompt, k, counts, likely), _WORD * count) for k, count in enumerate(counts)]
    shown = [example.words for example in examples]
    levels = range(len(counts))
    asked += [(denoising_prompt(shown, likely, k, table), _WORD * counts[k]) for k in levels] * mend
    spending.check(llm, asked, setting.console)
    words: list[list[str]] = []
    exact: list[int] = []
    for level, count in enumerate(counts):
        reply = llm.complete(words_prompt(examples, prompt, level, counts, words), _WORD * count)
        said, known = read_words(reply, table, count)
        words.append(said)
        exact.append(known)
    for turn in range(mend):
        for level in levels:
            text = denoising_prompt(shown, words, level, table, setting.seed + turn)
            said, known = read_words(llm.complete(text, _WORD * counts[level]), table, counts[level])
            if known:  # what says nothing mends nothing
                words[level], exact[level] = said, known
    video = setting.draw(words, lm, prompt)
    write_pieces(out, whole(video), setting.tokenizer.config.fps, setting.console, overwrite)
    record = {"output": str(out), "prompt": prompt, "words": words, "words_said": exact, "llm": llm.name}
    by_level = ", ".join(f"{said} of {count}" for said, count in zip(exact, counts, strict=True))
    setting.console.emit(record, f"{out}: words of the table that it said, by level: {by_level}")
    return DONE


def _finisher(model: str | None, device: str) -> PyramidLM:
    from tasks.models import DEFAULTS, load_lm

    lm = load_lm(model or DEFAULTS["tasks"], device)
    lm.vocabulary.task("refine")
    return lm


def _connect(llm: str, base_url: str | None, timeout: float, retries: int, cache: Path, device: str) -> LanguageModel:
    from lm.llm import Kept, LocalModel, ServedModel

    if base_url is None:
        return Kept(LocalModel(llm, device), cache)
    return Kept(ServedModel(llm, base_url, None, timeout, retries), cache)


@dataclass(frozen=True)
class _Spending:
    price_in: float
    price_out: float
    max_cost: float | None

    def check(self, llm: LanguageModel, prompts: list[tuple[str, int]], console: Console) -> None:
        """Says what will be asked, and raises ValueError where it may cost more than it may."""
        from lm.llm import Estimate

        estimate = Estimate.of(llm, prompts, self.price_in, self.price_out)
        console.note(str(estimate))
        if self.max_cost is not None and estimate.cost > self.max_cost:
            raise ValueError(f"--max-cost: expected at most {self.max_cost}, got an estimate of {estimate.cost:.4f}")


@dataclass(frozen=True)
class _Setting:
    """A tokenizer with words, and how clips are shown by them."""

    tokenizer: PyramidTokenizer
    detail: int
    seed: int
    console: Console

    @staticmethod
    def of(model: str | None, device: str, detail: int | None, seed: int, console: Console) -> _Setting:
        from pyramid.levels import check_detail
        from tasks.models import load_tokenizer

        tokenizer = load_tokenizer(model, check_device(device))
        if tokenizer.table is None:
            raise ValueError("--model: expected a tokenizer with levels of words, got one without")
        levels = len(tokenizer.word_levels)
        return _Setting(
            tokenizer, check_detail(levels if detail is None else detail, levels, "--detail"), seed, console
        )

    @property
    def counts(self) -> list[int]:
        """Words of each level of a clip that is shown."""
        pyramids = self.tokenizer.pyramids(self.tokenizer.config.num_frames)
        return [sum(p.counts[level] for p in pyramids) for level in self.tokenizer.word_levels[: self.detail]]

    def words(self, video: Tensor) -> list[list[str]]:
        import torch

        from lm.incontext import clip_words

        with torch.inference_mode():
            tokens = self.tokenizer.encode(video.to(self.tokenizer.device), max(self.tokenizer.word_levels) + 1)
        return clip_words(self.tokenizer.words(tokens)[0])

    def examples(self, folder: Path, field: str, asked: set[Path]) -> list[tuple[str, Path]]:
        """(label or caption, clip) of the folder's lines that have one, but for the clips that are asked about. Raises
        ValueError for none."""
        from pyramid.data.folder import find_metadata, read_metadata

        if not folder.is_dir():
            raise FileNotFoundError(f"--examples: {folder}: expected a folder, found none")
        clips = [clip for file in find_metadata(folder) for clip in read_metadata(file)]
        clips = [clip for clip in clips if clip.path.resolve() not in asked]
        known = [(str(getattr(clip, field)), clip.path) for clip in clips if getattr(clip, field) not in (None, "")]
        if not known:
            raise ValueError(f'--examples: {folder}: expected lines of metadata.jsonl with a "{field}", found none')
        return known

    def choose(self, known: list[tuple[str, Path]], shots: int, labels: list[str] | None = None) -> list[Example]:
        """`shots` of them, or of each label, in an order drawn by the seed; clips that cannot be read are passed over
        and said."""
        from lm.incontext import Example
        from tasks.clips import read_spread

        draw = random.Random(self.seed)
        groups: dict[str, list[tuple[str, Path]]] = defaultdict(list)
        for answer, path in draw.sample(known, len(known)):
            groups[answer if labels else ""].append((answer, path))
        config, chosen = self.tokenizer.config, []
        for name in labels or [""]:
            left = shots
            for answer, path in groups[name]:
                if not left:
                    break
                try:
                    video, _ = read_spread(path, config.num_frames, config.size)
                except (OSError, ValueError) as error:
                    if not user_can_mend(error):
                        raise
                    self.console.fault(error)
                    continue
                chosen.append(Example(self.words(video), answer))
                left -= 1
        return draw.sample(chosen, len(chosen))

    def answer(
        self,
        inputs: list[str],
        llm: LanguageModel,
        prompt: Callable[[list[list[str]]], str],
        read: Callable[[str], Reply],
        name: str,
        most: int,
        spending: _Spending,
    ) -> int:
        """Ask about every clip; a line each. Returns the exit code."""
        config, code, asked = self.tokenizer.config, DONE, []

        def work(batch: list[tuple[Path, Load]]) -> list[list[str]] | Exception:
            shown = batch[0][1]()
            return shown if isinstance(shown, Exception) else self.words(shown.video)

        clips = shown_clips(find_clips(inputs), config.num_frames, config.size, None)
        for [(path, _)], words in side_by_side(clips, work, 1):
            if isinstance(words, Exception):
                code = self.console.refuse(path, words)
            else:
                asked.append((path, prompt(words)))
        spending.check(llm, [(text, most) for _, text in asked], self.console)
        for path, text in asked:
            reply = llm.complete(text, most)
            said = read(reply)
            record = {"input": str(path), name: said.answer, "exact": said.exact, "reply": reply, "llm": llm.name}
            self.console.emit(record, f"{path}: {said.answer or f'nothing that fits, but {reply.strip()[:60]!r}'}")
        return code

    def draw(self, words: list[list[str]], lm: PyramidLM | None, prompt: str) -> Tensor:
        """The clip (1, 3, T, H, W) whose levels of words are these; `lm` writes the finer ones."""
        import torch

        from lm.editing import Writer, refine
        from pyramid.tokens import TokenPyramid

        c, table = self.tokenizer.config, self.tokenizer.table
        assert table is not None
        pyramids = [pyramid.prefix(len(words)) for pyramid in self.tokenizer.pyramids(c.num_frames)]
        rest = [iter(table.text_to_ids(" ".join(level))) for level in words]
        ids = tuple(
            tuple(
                torch.tensor([[next(rest[k]) for _ in range(level.count)]]).reshape(1, *level.grid)
                for k, level in enumerate(pyramid.levels)
            )
            for pyramid in pyramids
        )
        tokens = TokenPyramid(ids, c.num_frames, *c.size)
        if lm is None:
            with torch.inference_mode():
                return self.tokenizer.decode(tokens)
        return refine(Writer(lm, prompt, seed=self.seed), tokens)
