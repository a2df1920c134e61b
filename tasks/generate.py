"""`pyramid generate`: clips from words, the pyramid written from the top down and stopped at any detail."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tasks.console import DONE, Console
from tasks.files import claim, tagged
from tasks.options import (
    MAX_SEED,
    Device,
    Json,
    Model,
    Out,
    Overwrite,
    Seed,
    check_device,
    parse_details,
    parse_size,
)
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

if TYPE_CHECKING:
    from torch import Tensor


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to show.", show_default=False)],
    detail: Annotated[str, typer.Option("--detail", "-d", help="Levels to write: 3, 1,3, 1-3 or all.")] = "",
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="Clips a prompt.")] = 1,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames a clip, any number; 1 is an image.", show_default=False)
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Height x width, such as 64x112; the model's by default.", show_default=False)
    ] = None,
    task: Annotated[
        str, typer.Option(help="What PROMPT is: generate (a description), class (a class's name).")
    ] = "generate",
    negative: Negative = "",
    guidance: Guidance = None,
    decoder: Decoder = None,
    passes: Passes = None,
    order: Order = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    preview: PreviewFolder = None,
    model: Model = None,
    out: Out = Path("runs/generate/clip.mp4"),
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Generate clips from words.

    --out names the format: .mp4, .gif, .png (a contact sheet). Several prompts, clips or details are numbered, such as
    clip.2.detail-3.mp4; each clip has the seed after that of the one before. The details of one clip are prefixes of
    one pyramid. A clip longer than the model's is written window by window, in constant memory.
    """
    with Console("generate", as_json, writes=True) as console:
        from lm.conditions import Condition
        from lm.editing import Writer, roll
        from tasks.models import load_lm

        if any(not prompt.strip() for prompt in prompts):
            raise ValueError("PROMPT: expected a few words, got an empty one")
        if task not in ("generate", "class"):
            raise ValueError(
                f"--task: expected generate or class, got {task!r}; what is given a clip is `pyramid edit`"
            )
        jobs = [prompt for prompt in prompts for _ in range(num)]
        if seed + len(jobs) - 1 > MAX_SEED:
            raise ValueError(f"--seed: expected at most {MAX_SEED - len(jobs) + 1} for {len(jobs)} clips, got {seed}")
        decoding = decoding_options(decoder, passes, order, temperature, top_p, guidance, negative)
        shape = parse_size(size) if size is not None else None
        lm = load_lm(model, check_device(device))
        tokenizer = lm.tokenizer
        details = parse_details(detail or str(tokenizer.num_levels), tokenizer.num_levels)
        count = tokenizer.config.num_frames if frames is None else frames
        long = count > tokenizer.config.num_frames
        if long and (len(details) > 1 or task != "generate"):
            raise ValueError(
                f"--frames: expected at most {tokenizer.config.num_frames} for several details or a class, got {count}"
            )
        task = "image" if count == 1 and task == "generate" and "image" in lm.config.tasks else task
        lm.vocabulary.task(task)
        if long:
            lm.vocabulary.task(Writer(lm).onward)
        files = _output_files(out, len(jobs), details)
        claim(files.values(), overwrite)
        watch = Preview(lm, preview) if preview is not None else None
        for index, prompt in console.track(list(enumerate(jobs)), "generate"):
            begin = time.perf_counter()
            if long:
                writer = Writer(lm, prompt, negative, details[-1], seed + index, decoding, watch)
                pieces, file = roll(writer, count, shape), files[index, details[-1]]
                write_pieces(file, pieces, tokenizer.config.fps, console, overwrite, len(writer.starts(count)))
            else:
                tokens = lm.generate(
                    [prompt],
                    max(details),
                    condition=Condition(task),
                    num_frames=count,
                    size=shape,
                    seed=seed + index,
                    negative=negative,
                    on_block=None if watch is None else partial(watch, size=shape or tokenizer.config.size),
                    **decoding,
                )
                videos = {k: tokenizer.decode(tokens, detail=k)[0] for k in details}
                for file in dict.fromkeys(files[index, k] for k in details):
                    shown = {k: v for k, v in videos.items() if files[index, k] == file}
                    _write(file, shown, tokenizer.config.fps, overwrite)
            seconds = time.perf_counter() - begin
            pyramids = tokenizer.pyramids(count, *(shape or ()))
            for k in details:
                num_tokens = sum(pyramid.prefix(k).num_tokens for pyramid in pyramids)
                record = {
                    "prompt": prompt,
                    "output": str(files[index, k]),
                    "detail": k,
                    "tokens": num_tokens,
                    "frames": count,
                    "seed": seed + index,
                    "seconds": round(seconds, 3),
                }
                text = f"{files[index, k]}: {prompt!r}, detail {k}, {num_tokens} tokens, {seconds:.1f} s"
                console.emit(record, text)
    return DONE


def _output_files(out: Path, num_clips: int, details: list[int]) -> dict[tuple[int, int], Path]:
    """The file of each (clip, detail). A sheet (.png) shows all details of its clip."""
    files = {}
    for index in range(num_clips):
        number = [str(index + 1)] if num_clips > 1 else []
        for k in details:
            level = [f"detail-{k}"] if len(details) > 1 and out.suffix.lower() != ".png" else []
            files[index, k] = tagged(out, *number, *level)
    return files


def _write(file: Path, videos: dict[int, Tensor], fps: float, overwrite: bool) -> None:
    """One clip; or, as .png, a sheet with a row a detail."""
    from pyramid.data.video import VideoWriter, contact_sheet, write_video

    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() == ".png" and (len(videos) > 1 or next(iter(videos.values())).shape[1] > 1):
        sheet = contact_sheet(list(videos.values()), [f"detail {k}" for k in videos], max_frames=9)
        with VideoWriter(file, overwrite=overwrite) as writer:
            writer.write(sheet)
    else:
        (video,) = videos.values()
        write_video(file, video, fps=fps, overwrite=overwrite)
