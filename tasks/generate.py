"""`pyramid generate`: clips from words, the pyramid written from the top down and stopped at any detail."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.console import DONE, Console
from tasks.files import claim, tagged
from tasks.options import MAX_SEED, Device, Json, Model, Out, Overwrite, Seed, check_device, parse_details

if TYPE_CHECKING:
    from torch import Tensor


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to show.", show_default=False)],
    detail: Annotated[str, typer.Option("--detail", "-d", help="Levels to write: 3, 1,3, 1-3 or all.")] = "",
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="Clips a prompt.")] = 1,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames a clip; the model's by default.")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="0 ignores the prompt, 1 follows it as learned, more presses it.", show_default=False
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest code.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from this share of the probability.")] = 0.95,
    passes: Annotated[int | None, typer.Option(min=1, help="Passes a block of tokens; the model's by default.")] = None,
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
    one pyramid.
    """
    with Console("generate", as_json, writes=True) as console:
        from lm.sampling import SamplingConfig
        from tasks.models import load_lm

        if any(not prompt.strip() for prompt in prompts):
            raise ValueError("PROMPT: expected a few words, got an empty one")
        jobs = [prompt for prompt in prompts for _ in range(num)]
        if seed + len(jobs) - 1 > MAX_SEED:
            raise ValueError(f"--seed: expected at most {MAX_SEED - len(jobs) + 1} for {len(jobs)} clips, got {seed}")
        options = _given(temperature=temperature, top_p=top_p, guidance=guidance)
        SamplingConfig(**options)  # before the model is loaded
        options |= _given(passes=passes, num_frames=frames)
        lm = load_lm(model, check_device(device))
        tokenizer = lm.tokenizer
        details = parse_details(detail or str(tokenizer.num_levels), tokenizer.num_levels)
        files = _output_files(out, len(jobs), details)
        claim(files.values(), overwrite)
        for index, prompt in console.track(list(enumerate(jobs)), "generate"):
            begin = time.perf_counter()
            tokens = lm.generate([prompt], detail=max(details), seed=seed + index, **options)
            videos = {k: tokenizer.decode(tokens, detail=k)[0] for k in details}
            seconds = time.perf_counter() - begin
            for file in dict.fromkeys(files[index, k] for k in details):
                _write(
                    file, {k: v for k, v in videos.items() if files[index, k] == file}, tokenizer.config.fps, overwrite
                )
            for k in details:
                record = {
                    "prompt": prompt,
                    "output": str(files[index, k]),
                    "detail": k,
                    "tokens": tokens.num_tokens(k),
                    "seed": seed + index,
                    "seconds": round(seconds, 3),
                }
                text = f"{files[index, k]}: {prompt!r}, detail {k}, {tokens.num_tokens(k)} tokens, {seconds:.1f} s"
                console.emit(record, text)
    return DONE


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the model knows its own values of the others."""
    return {name: value for name, value in options.items() if value is not None}


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
    if file.suffix.lower() == ".png":
        sheet = contact_sheet(list(videos.values()), [f"detail {k}" for k in videos], max_frames=9)
        with VideoWriter(file, overwrite=overwrite) as writer:
            writer.write(sheet)
    else:
        (video,) = videos.values()
        write_video(file, video, fps=fps, overwrite=overwrite)
