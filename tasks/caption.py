"""`pyramid caption`: what a clip shows, read from the coarse levels of its pyramid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tasks.console import Console
from tasks.files import find_clips
from tasks.options import Device, Inputs, Json, Model, check_device


def caption(
    inputs: Inputs,
    detail: Annotated[
        int | None, typer.Option("--detail", "-d", help="Levels to read; those the model was trained on by default.")
    ] = None,
    words: Annotated[bool, typer.Option("--words", help="Show the words at the top of the pyramid too.")] = False,
    model: Model = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Caption clips, one line a file.

    A clip is cropped and resized to the model's size, and the frames read are spread over its whole length.
    """
    with Console("caption", as_json) as console:
        paths = find_clips(inputs)
        from pyramid.levels import check_detail
        from tasks.clips import read_spread
        from tasks.models import load_lm

        lm = load_lm(model, check_device(device))
        tokenizer = lm.tokenizer
        read = check_detail(lm.config.caption_detail if detail is None else detail, tokenizer.num_levels, "--detail")
        config = tokenizer.config
        console.note(
            f"reading {config.num_frames} frames over the length of each clip, cropped to "
            f"{config.height}x{config.width}, at detail {read} of {tokenizer.num_levels}"
        )

        def work(path: Path) -> None:
            video, source_frames = read_spread(path, config.num_frames, config.size)
            tokens = tokenizer.encode(video.to(device))
            text = lm.caption(tokens, detail=read)[0]
            top = tokenizer.words(tokens.truncate(read))[0]
            record = {
                "input": str(path),
                "caption": text,
                "detail": read,
                "tokens_read": tokens.num_tokens(read),
                "tokens_total": tokens.num_tokens(),
                "frames": source_frames,
                "words": top,
            }
            lines = [f"{path}: {text}"]
            if words:
                lines += [
                    f"  chunk {c}, level {k}: {' '.join(level)}"
                    for c, levels in enumerate(top)
                    for k, level in enumerate(levels, start=1)
                ]
            console.emit(record, "\n".join(lines))

        return console.each(paths, work)
