"""`pyramid caption`: what a clip shows, read from the coarse levels of its pyramid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tasks.console import Console
from tasks.files import find_clips
from tasks.options import Device, Inputs, Json, Model, Overwrite, Seed, check_device
from tasks.reading import Batch, Detail, Every, Format, How, Said, Subtitles, read_clips

if TYPE_CHECKING:
    from pyramid.tokens import TokenPyramid


def caption(
    inputs: Inputs,
    detail: Detail = None,
    words: Annotated[bool, typer.Option("--words", help="Show the words at the top of the pyramid too.")] = False,
    every: Every = None,
    out: Subtitles = None,
    kind: Format = "srt",
    beams: Annotated[int, typer.Option("--beams", min=1, help="Search for the likeliest sentence.")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="Above 0 draws the sentence.")] = 0.0,
    batch: Batch = 16,
    model: Model = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Caption clips, one line a file; or one every few seconds, as subtitles.

    A clip is cropped and resized to the model's size, and the frames read are spread over its whole length.
    """
    with Console("caption", as_json, writes=out is not None) as console:
        paths = find_clips(inputs)
        from pyramid.levels import check_detail
        from tasks.models import load_lm

        lm = load_lm(model, check_device(device))
        lm.vocabulary.task("caption")
        tokenizer = lm.tokenizer
        read = check_detail(lm.config.caption_detail if detail is None else detail, tokenizer.num_levels, "--detail")
        total = sum(pyramid.num_tokens for pyramid in tokenizer.pyramids(tokenizer.config.num_frames))

        def say(tokens: TokenPyramid) -> list[Said]:
            answers = lm.ask(tokens, None, read, beams=beams, temperature=temperature, seed=seed)
            said = []
            for answer, top in zip(answers, tokenizer.words(tokens), strict=True):
                fields = {"tokens_read": tokens.num_tokens(), "tokens_total": total, "words": top}
                lines = tuple(
                    f"  chunk {c}, level {k}: {' '.join(level)}"
                    for c, levels in enumerate(top)
                    for k, level in enumerate(levels, start=1)
                )
                said.append(Said(answer.text, answer.confidence, fields, lines if words else ()))
            return said

        how = How(read, batch, every, out, kind, overwrite)
        return read_clips(lm, paths, say, how, console, "caption")
