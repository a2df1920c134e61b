"""`pyramid ask` and `pyramid classify`: a question about clips, and which of some labels is theirs, answered from the
coarse levels of their pyramids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tasks.console import Console
from tasks.files import find_clips
from tasks.options import Device, Dtype, Json, Model, Overwrite, check_device, check_dtype, parse_labels
from tasks.reading import BATCH, Batch, ClipsOrStream, Detail, Every, Format, How, Said, Subtitles, read_clips

if TYPE_CHECKING:
    from lm.model import PyramidLM
    from pyramid.tokens import TokenPyramid


def ask(
    question: Annotated[str, typer.Argument(help='Such as "what colour is the ball?".', show_default=False)],
    inputs: ClipsOrStream,
    detail: Detail = None,
    every: Every = None,
    out: Subtitles = None,
    kind: Format = "srt",
    beams: Annotated[int, typer.Option("--beams", min=1, help="Search for the likeliest answer.")] = 1,
    batch: Batch = BATCH,
    model: Model = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> int:
    """Answer a question about clips, one line a file, with the probability of the answer."""
    with Console("ask", as_json, writes=out is not None) as console:
        paths = find_clips(inputs, streams=True)
        if not question.strip():
            raise ValueError("QUESTION: expected a question, got an empty one")
        lm, read = _reader(model, device, dtype, detail)

        def say(tokens: TokenPyramid, places: Sequence[int]) -> list[Said]:
            answers = lm.ask(tokens, question, read, beams=beams)
            return [Said(answer.text, answer.confidence, {"question": question}) for answer in answers]

        return read_clips(lm, paths, say, How(read, batch, every, out, kind, overwrite), console, "answer")


def classify(
    inputs: ClipsOrStream,
    labels: Annotated[str, typer.Option("--labels", help="Between commas: red,green,blue.", show_default=False)],
    question: Annotated[
        str | None,
        typer.Option("--question", help='What is asked; "red, green or blue?" by default.', show_default=False),
    ] = None,
    detail: Detail = None,
    every: Every = None,
    out: Subtitles = None,
    kind: Format = "srt",
    batch: Batch = BATCH,
    model: Model = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> int:
    """Say which of some labels a clip has, with its probability among them."""
    with Console("classify", as_json, writes=out is not None) as console:
        paths = find_clips(inputs, streams=True)
        names = parse_labels(labels)
        lm, read = _reader(model, device, dtype, detail)

        def say(tokens: TokenPyramid, places: Sequence[int]) -> list[Said]:
            said = []
            for shares in lm.classify(tokens, names, question, read).tolist():
                best = max(range(len(names)), key=shares.__getitem__)
                fields = {"probabilities": dict(zip(names, [round(share, 4) for share in shares], strict=True))}
                said.append(Said(names[best], shares[best], fields))
            return said

        return read_clips(lm, paths, say, How(read, batch, every, out, kind, overwrite), console, "label")


def _reader(model: str | None, device: str, dtype: str, detail: int | None) -> tuple[PyramidLM, int]:
    """A model that was taught to answer, and the levels that it reads."""
    from pyramid.levels import check_detail
    from tasks.models import DEFAULTS, load_lm

    lm = load_lm(model or DEFAULTS["tasks"], check_device(device), check_dtype(dtype))
    lm.vocabulary.task("ask")
    return lm, check_detail(lm.config.caption_detail if detail is None else detail, lm.num_levels, "--detail")
