"""Draws a contact sheet for each task of a language model: held-out clips, what was given of them, what was written.

python examples/task_sheets.py MODEL OUT [FOLDER of clips; shapes by default]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lm.conditions import TASKS, Condition
from lm.editing import Box, Piece, Writer, joined, outpaint, roll, widen
from pyramid.data.sheet import contact_sheet
from tasks.evaluate import open_source
from tasks.generation import given
from tasks.models import load_lm

CLIPS, FRAMES = 3, 9
PROMPTS = [
    "a large red circle moves right on a dotted background",
    "a medium green star orbits on a gradient background",
]


def main(model: str, out: Path, data: str = "shapes:full") -> None:
    lm = load_lm(model)
    out.mkdir(parents=True, exist_ok=True)
    source = open_source([data], lm.tokenizer, Path())
    clips = next(iter(source.clips("held_out", range(7, 7 + CLIPS), CLIPS)))
    video = torch.stack([clip.video for clip in clips])
    captions = _captions(source, [clip.index for clip in clips])
    for task in (name for name in lm.config.tasks if name in TASKS):
        draw(lm, task, video, captions, out / f"{task}.png")
    wide = video[:1]
    tall, place = (112, 64), Box(0, 24, 64, 64)
    if video.shape[3:] == (64, 64):
        writer = Writer(lm, captions[0])
        portrait = joined(outpaint(writer, widen([_piece(wide)], tall, 0, 24), tall, place))
        landscape = joined(
            outpaint(writer, widen([_piece(portrait)], (112, 200), 68, 0), (112, 200), Box(68, 0, 64, 112))
        )
        save(out / "outpaint_wide.png", [wide[0], portrait[0], landscape[0]], ["the clip", "9:16", "and 16:9"], 5)
        board = Writer(lm, lambda frame: PROMPTS[0] if frame < 17 else PROMPTS[1])
        save(out / "storyboard.png", [joined(roll(board, 41))[0]], [" / ".join(PROMPTS)], 12)


def draw(lm, task: str, video: Tensor, captions: list[str], path: Path) -> None:
    """Rows: for each clip the clip itself, what is given of it, and what was written from it and its caption."""
    rows, labels = [], []
    if TASKS[task].fill or TASKS[task].replace or task == "refine":
        condition, known = given(lm, task, video, torch.Generator().manual_seed(3))
        prompts = captions
        if task == "stylize":
            prompts = [PROMPTS[index % 2] for index in range(len(video))]
        written = lm.tokenizer.decode(lm.generate(prompts, condition=condition, seed=1))
        if TASKS[task].fill:
            shown = torch.where(known, video, torch.zeros_like(video))
        elif task == "refine":
            shown = lm.tokenizer.decode(condition.draft)
        else:
            shown = lm.tokenizer.decode(condition.hint)
        for clip, part, result, prompt in zip(video, shown, written, prompts, strict=True):
            rows += [clip, part, result]
            labels += ["clip", "given", f"written: {prompt}"]
    else:
        prompts = captions if task not in ("class", "unconditional") else [""] * len(captions)
        count = 1 if task == "image" else video.shape[2]
        written = lm.tokenizer.decode(lm.generate(prompts, condition=Condition(task), num_frames=count, seed=1))
        rows, labels = list(written), [prompt or task for prompt in prompts]
    save(path, rows, labels, 1 if task == "image" else FRAMES)


def save(path: Path, rows: list[Tensor], labels: list[str], frames: int) -> None:
    Image.fromarray(contact_sheet(rows, labels, max_frames=frames)).save(path)


def _piece(video: Tensor) -> Piece:
    return Piece(video, torch.ones_like(video[:, :1], dtype=torch.bool))


def _captions(source, indices: list[int]) -> list[str]:
    held_out = source.sets["held_out"] if hasattr(source, "sets") else source.held_out
    if hasattr(held_out, "describe"):
        return [item["caption"] for item in held_out.describe(indices)]
    return [held_out.clips[index].caption for index in indices]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:4])
