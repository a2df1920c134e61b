"""`pyramid storyboard`: a list of prompts, one clip: each one goes on where the one before ended."""

from __future__ import annotations

import time
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import typer

from tasks.console import DONE, Console
from tasks.files import claim
from tasks.options import Device, Json, Model, Out, Overwrite, Seed, check_device, parse_size
from tasks.writing import (
    Decoder,
    Guidance,
    Negative,
    Order,
    Passes,
    Preview,
    PreviewFolder,
    Temperature,
    TopP,
    decoding_options,
    write_pieces,
)


def storyboard(
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT...", help="What to show, in order.", show_default=False)
    ],
    seconds: Annotated[str, typer.Option(help="Of each prompt: one number, or one a prompt: 2,4,2.")] = "2",
    detail: Annotated[
        int | None, typer.Option("--detail", "-d", help="Levels to write; all by default.", show_default=False)
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Height x width, such as 64x112; the model's by default.", show_default=False)
    ] = None,
    negative: Negative = "",
    guidance: Guidance = None,
    decoder: Decoder = None,
    passes: Passes = None,
    order: Order = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    preview: PreviewFolder = None,
    model: Model = None,
    out: Out = Path("runs/storyboard/clip.mp4"),
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Write one clip from a list of prompts.

    Each prompt goes on from the last frames of the one before, for as long as --seconds says; the clip is written
    window by window, in constant memory. A prompt has the word from the first window that begins in its time.
    """
    with Console("storyboard", as_json, writes=True) as console:
        from lm.editing import Writer, roll
        from pyramid.levels import check_detail
        from tasks.models import DEFAULTS, load_lm

        if any(not prompt.strip() for prompt in prompts):
            raise ValueError("PROMPT: expected a few words, got an empty one")
        decoding = decoding_options(decoder, passes, order, temperature, top_p, guidance, negative)
        shape = parse_size(size) if size is not None else None
        lm = load_lm(model or DEFAULTS["tasks"], check_device(device))
        config = lm.tokenizer.config
        detail = check_detail(detail, lm.num_levels, "--detail")
        spans = [max(1, round(span * config.fps)) for span in _spans(seconds, len(prompts))]
        ends = list(accumulate(spans))

        def prompt_at(frame: int) -> str:
            return prompts[min(bisect_right(ends, frame), len(prompts) - 1)]

        watch = Preview(lm, preview) if preview is not None else None
        writer = Writer(lm, prompt_at, negative, detail, seed, decoding, watch)
        starts = writer.starts(ends[-1])
        if len(starts) > 1:
            lm.vocabulary.task(writer.onward)
        check_shots(prompts, ends, starts, config.fps)
        claim([out], overwrite)
        begin = time.perf_counter()
        count = write_pieces(out, roll(writer, ends[-1], shape), config.fps, console, overwrite, len(starts))
        took = time.perf_counter() - begin
        record = {
            "prompts": prompts,
            "output": str(out),
            "detail": detail,
            "frames": count,
            "shots": spans,
            "seed": seed,
            "seconds": round(took, 3),
        }
        console.emit(record, f"{out}: {len(prompts)} prompts, {count} frames, {took:.1f} s")
    return DONE


def check_shots(prompts: list[str], ends: list[int], starts: list[int], fps: float) -> None:
    """Raises ValueError for a prompt in whose time, up to its frame of `ends`, no window of `starts` begins."""
    for prompt, begin, end in zip(prompts, [0, *ends], ends, strict=False):
        if not any(begin <= start < end for start in starts):
            after = next((start for start in starts if start >= begin), None)
            least = "" if after is None else f" of at least {(after + 1 - begin) / fps:.3g} s"
            raise ValueError(
                f"--seconds: expected a time{least} in which one of the model's windows begins, at "
                f"{', '.join(f'{start / fps:.3g}' for start in starts[:8])} s, for {prompt!r}, got "
                f"{begin / fps:.3g} to {end / fps:.3g} s"
            )


def _spans(text: str, count: int) -> list[float]:
    """Seconds of each prompt. Raises ValueError unless they are above 0, and one or `count`."""
    try:
        spans = [float(part) for part in text.split(",")]
    except ValueError:
        spans = []
    if len(spans) == 1:
        spans *= count
    if len(spans) != count or not all(0 < span < float("inf") for span in spans):
        raise ValueError(f"--seconds: expected a number, or one for each of {count} prompts such as 2,4, got {text!r}")
    return spans
