"""`pyramid edit`: clips changed by the language model, one task after the other, in constant memory.

    frames -> upscale -> stylize -> refine -> inpaint -> outpaint -> extend -> file

The model works on frames whose shorter side is the one it was trained on; a larger clip is brought there and what was
written is brought back. Pixels that a task is given come out as they came in: `--inpaint`, `--outpaint` and `--extend`
write around them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.console import DONE, Console
from tasks.files import claim
from tasks.options import Device, Json, Model, Out, Overwrite, Seed, check_device
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
    from lm.editing import Box, Piece, Writer
    from pyramid.data.frames import VideoInfo

MAX_SIDE = 16384  # pixels, of what is outpainted
READ = 8  # frames at a time


def edit(
    clip: Annotated[
        Path | None,
        typer.Argument(metavar="[CLIP]", help="A clip or an image; none for --between.", show_default=False),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to show.")] = "",
    inpaint: Annotated[
        str | None,
        typer.Option(metavar="X,Y,W,H", help="Write anew what is in this box, in pixels of CLIP.", show_default=False),
    ] = None,
    outpaint: Annotated[
        str | None,
        typer.Option(
            metavar="W:H",
            help="Write what is around, up to this shape, such as 9:16; 9:16,16:9 to portrait and back.",
            show_default=False,
        ),
    ] = None,
    extend: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Go on; from an image, set it in motion.", show_default=False),
    ] = None,
    between: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="FIRST LAST", help="The clip from one image to another.", show_default=False),
    ] = None,
    stylize: Annotated[bool, typer.Option("--stylize", help="Keep the edges, take the look from --prompt.")] = False,
    upscale: Annotated[bool, typer.Option("--upscale", help="Bring a smaller clip to the model's resolution.")] = False,
    refine: Annotated[
        int | None,
        typer.Option(
            metavar="K", min=1, help="Keep the first K levels, write the finer ones anew.", show_default=False
        ),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=3, help="Of --between.", show_default=False)] = None,
    detail: Annotated[
        int | None, typer.Option("--detail", "-d", help="Levels to write; all by default.", show_default=False)
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
    out: Out = Path("runs/edit/clip.mp4"),
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Change a clip: fill a hole, widen the frame, go on, go between two images, restyle, sharpen.

    Several options chain in the order upscale, stylize, refine, inpaint, outpaint, extend. What --inpaint, --outpaint
    and --extend are given stays as it is, pixel by pixel, in a format without loss (.mkv).
    """
    with Console("edit", as_json, writes=True) as console:
        from lm.editing import Writer
        from pyramid.levels import check_detail
        from tasks.clips import name_losses
        from tasks.models import DEFAULTS, load_lm

        asked = {
            "upscale": upscale,
            "stylize": stylize,
            "refine": refine,
            "inpaint": inpaint,
            "outpaint": outpaint,
            "extend": extend,
            "between": between,
        }
        chain = [name for name, value in asked.items() if value]
        sources = list(between) if between else [clip] if clip else []
        _check(chain, clip, extend, frames)
        hole = _box(inpaint) if inpaint else None
        shapes = [_shape(part) for part in outpaint.split(",")] if outpaint else []
        decoding = decoding_options(decoder, passes, order, temperature, top_p, guidance, negative)
        lm = load_lm(model or DEFAULTS["tasks"], check_device(device))
        for name in chain:
            lm.vocabulary.task({"extend": "continue", "between": "interpolate"}.get(name, name))
        detail = check_detail(detail, lm.num_levels, "--detail")
        if refine is not None and refine >= detail:
            raise ValueError(f"--refine: expected fewer than the {detail} levels to write, got {refine}")
        claim([out], overwrite, inputs=sources)
        config = lm.tokenizer.config
        plan = _Plan.of(sources[0], out, min(config.size), config.fps, shapes, bring_up=upscale)
        watch = _Watch(console, None if preview is None else Preview(lm, preview))
        writer = Writer(lm, prompt, negative, detail, seed, decoding, watch)
        begin = time.perf_counter()
        if between:
            pieces = _between(writer, between, plan, frames)
        else:
            name_losses(sources[0], plan.info, out, plan.fps, console)
            more = max(1, round(extend * plan.fps)) if extend else 0
            pieces = _chain(writer, sources[0], plan, upscale, stylize, refine, hole, more)
        count = write_pieces(out, pieces, plan.fps, console, overwrite)
        took = time.perf_counter() - begin
        record = {
            "input": [str(path) for path in sources],
            "output": str(out),
            "tasks": chain,
            "prompt": prompt,
            "frames": count,
            "height": plan.shown[0],
            "width": plan.shown[1],
            "seed": seed,
            "seconds": round(took, 3),
        }
        size = f"{count} frames of {plan.shown[1]}x{plan.shown[0]}"
        console.emit(record, f"{out}: {', '.join(chain)}, {size}, {took:.1f} s")
    return DONE


class _Watch:
    """Called as `on_block`: stages wait for each other, and the first frame may be long in coming; says how many
    windows were begun."""

    def __init__(self, console: Console, preview: Preview | None) -> None:
        self.console, self.preview, self.windows, self.begin = console, preview, 0, time.monotonic()

    def __call__(self, chunk: int, level: int, ids: tuple[Any, ...], size: tuple[int, int]) -> None:
        self.windows += chunk == level == 0
        self.console.pulse(f"window {self.windows}, chunk {chunk + 1}, level {level + 1}", self.begin)
        if self.preview is not None:
            self.preview(chunk, level, ids, size)


def _check(chain: list[str], clip: Path | None, extend: float | None, frames: int | None) -> None:
    """Raises ValueError for options that do not go together."""
    if not chain:
        raise ValueError(
            "expected something to do: --inpaint, --outpaint, --extend, --between, --stylize, --upscale or --refine"
        )
    if "between" in chain and (clip is not None or len(chain) > 1):
        raise ValueError("--between: expected neither a clip nor another task beside it")
    if "between" not in chain and clip is None:
        raise ValueError("CLIP: expected a clip or an image, got none")
    if frames is not None and "between" not in chain:
        raise ValueError("--frames: expected --between; for more frames of a clip there is --extend")
    if extend is not None and not 0 < extend < math.inf:
        raise ValueError(f"--extend: expected seconds above 0, got {extend}")


def _box(text: str) -> Box:
    """`8,8,16,16` -> x, y, width, height in pixels. Raises ValueError for what is none."""
    from lm.editing import Box

    parts = text.split(",")
    if not (len(parts) == 4 and all(part.strip().isdigit() for part in parts) and min(map(int, parts[2:])) > 0):
        raise ValueError(f"--inpaint: expected x,y,width,height in pixels such as 8,8,16,16, got {text!r}")
    return Box(*map(int, parts))


def _shape(text: str) -> float:
    """`9:16` -> width over height. Raises ValueError for what is no shape."""
    sides = text.split(":")
    if not (len(sides) == 2 and all(side.isdigit() and int(side) > 0 for side in sides)):
        raise ValueError(f"--outpaint: expected width:height such as 9:16, got {text!r}")
    return int(sides[0]) / int(sides[1])


@dataclass(frozen=True)
class _Plan:
    """Sizes as (height, width). `file`: of the file; `native`: the same, or the model's where it is upscaled; `work`:
    as the model sees it, its shorter side the model's; `canvases`: what that is widened to, step by step, each around
    the middle of the last; `shown`: of the result, where the file's frames stand at `place`, (top, left). `fps`: of the
    result, the file's own where the output's format takes it; `thinned`: else the rate to read at."""

    info: VideoInfo
    file: tuple[int, int]
    native: tuple[int, int]
    work: tuple[int, int]
    canvases: tuple[tuple[int, int], ...]
    shown: tuple[int, int]
    place: tuple[int, int]
    fps: float
    thinned: float | None

    @property
    def canvas(self) -> tuple[int, int]:
        """What the model works on in the end."""
        return self.canvases[-1] if self.canvases else self.work

    @staticmethod
    def of(path: Path, out: Path, side: int, fps: float, shapes: Sequence[float], *, bring_up: bool) -> _Plan:
        """For a clip or an image. `side`, `fps`: the model's shorter side and rate; `shapes`: width over height of what
        it is widened to; `bring_up`: the result has the model's resolution."""
        from pyramid.data.frames import probe
        from tasks.clips import shown_size, thinned_rate, written_rate

        info = probe(path)
        file = native = shown_size(info)
        scale = side / min(native)
        work = (max(1, round(native[0] * scale)), max(1, round(native[1] * scale)))
        if bring_up:
            if min(native) >= side:
                raise ValueError(
                    f"--upscale: {path}: expected a clip of fewer than {side} pixels on its shorter side, which is the "
                    f"model's resolution, got {native[1]}x{native[0]}"
                )
            native, scale = work, 1.0
        shown, place, canvases = native, (0, 0), list[tuple[int, int]]()
        for shape in shapes:
            wider = _widened(shown, shape)
            place = (place[0] + (wider[0] - shown[0]) // 2, place[1] + (wider[1] - shown[1]) // 2)
            shown = wider
            if max(shown) > MAX_SIDE:
                raise ValueError(
                    f"--outpaint: {path}: expected a frame of at most {MAX_SIDE} pixels a side, got "
                    f"{shown[1]}x{shown[0]}"
                )
            # Grown by the same on both sides, as the file's frames are: the middle stays the middle.
            canvases.append(
                (
                    work[0] + 2 * round((shown[0] - native[0]) * scale / 2),
                    work[1] + 2 * round((shown[1] - native[1]) * scale / 2),
                )
            )
        rate = fps if info.frames == 1 else written_rate(info, out, fps)
        return _Plan(info, file, native, work, tuple(canvases), shown, place, rate, thinned_rate(info, out))


def _widened(size: tuple[int, int], shape: float) -> tuple[int, int]:
    """The smallest frame of this shape around one of `size`, to an even number of pixels on the side that grows."""
    height, width = size
    if shape > width / height:
        return height, max(width, 2 * math.ceil(height * shape / 2 - 1e-9))
    return max(height, 2 * math.ceil(width / shape / 2 - 1e-9)), width


def _chain(
    writer: Writer,
    path: Path,
    plan: _Plan,
    upscale: bool,
    stylize: bool,
    refine: int | None,
    hole: Box | None,
    more: int,
) -> Iterator[Piece]:
    """The stages that were asked for, and the result at its size."""
    from lm import editing
    from lm.editing import Box, resized

    if hole is not None and (hole.left + hole.width > plan.file[1] or hole.top + hole.height > plan.file[0]):
        raise ValueError(
            f"--inpaint: expected a box within {plan.file[1]}x{plan.file[0]} pixels, got "
            f"{hole.left},{hole.top},{hole.width},{hole.height}"
        )
    pieces: Iterator[Piece] = (next(editing.whole(resized(chunk, plan.work))) for chunk in _frames(READ, path, plan))
    if upscale:
        pieces = editing.paint(writer.apart(1), pieces, "upscale", factor=1)
    if stylize:
        pieces = editing.paint(writer.apart(2), pieces, "stylize")
    if refine is not None:
        pieces = editing.paint(writer.apart(3), pieces, "refine", levels=refine)
    if hole is not None:
        pieces = editing.forget(pieces, _scaled(hole, plan.file, plan.work))
        pieces = editing.paint(writer.apart(4), pieces, "inpaint")
    height, width = plan.work
    for number, canvas in enumerate(plan.canvases, start=5):
        top, left = (canvas[0] - height) // 2, (canvas[1] - width) // 2
        pieces = editing.widen(pieces, canvas, left, top)
        pieces = editing.outpaint(writer.apart(number), pieces, canvas, Box(left, top, width, height))
        height, width = canvas
    if more:
        pieces = editing.extend(writer, pieces, more)
    kept = not (upscale or stylize or refine)
    return _brought_back(pieces, _frames(1, path, plan) if kept else iter(()), plan, hole)


def _frames(count: int, path: Path, plan: _Plan) -> Iterator[Any]:
    """The file's frames, the first one and then so many at a time."""
    from tasks.clips import stream_chunks

    return stream_chunks(path, count, fps=plan.thinned)


def _scaled(box: Box, native: tuple[int, int], work: tuple[int, int]) -> Box:
    """The cells of the frame as the model sees it that a box in pixels of the file touches."""
    from lm.editing import Box

    top, left = box.top * work[0] // native[0], box.left * work[1] // native[1]
    bottom = -(-(box.top + box.height) * work[0] // native[0])
    right = -(-(box.left + box.width) * work[1] // native[1])
    return Box(left, top, right - left, bottom - top)


def _brought_back(pieces: Iterator[Piece], frames: Iterator[Any], plan: _Plan, hole: Box | None) -> Iterator[Piece]:
    """What was written, at the size of the result; where the file's own pixels stay, they are put over it."""
    import torch

    from lm.editing import Piece, resized

    if plan.canvas == plan.shown:
        yield from pieces
        return
    for piece in pieces:
        for t in range(piece.num_frames):  # one by one: at the file's size a piece of them may be large
            video = resized(piece.video[:, :, t : t + 1], plan.shown).clone()
            source = next(frames, None)
            if source is not None:
                target = video[..., plan.place[0] :, plan.place[1] :][..., : plan.native[0], : plan.native[1]]
                inside = torch.ones(plan.native, dtype=torch.bool)
                if hole is not None:
                    inside[hole.rows, hole.columns] = False
                target.copy_(torch.where(inside, source, target))
            yield Piece(video, torch.ones_like(video[:, :1], dtype=torch.bool))


def _between(writer: Writer, images: tuple[Path, Path], plan: _Plan, frames: int | None) -> Iterator[Piece]:
    """The clip from one image to the other, at their size."""
    import torch

    from lm.editing import Piece, between, resized
    from pyramid.data.transforms import from_uint8

    first, last = (from_uint8(next(_first_frame(path))[None])[None] for path in images)
    if first.shape != last.shape:
        found = " and ".join(f"{image.shape[4]}x{image.shape[3]}" for image in (first, last))
        raise ValueError(f"--between: expected two images of one size, got {found}")
    count = writer.window if frames is None else frames
    video = resized(between(writer, resized(first, plan.work), resized(last, plan.work), count), plan.shown).clone()
    video[:, :, 0], video[:, :, -1] = first[:, :, 0], last[:, :, 0]
    yield Piece(video, torch.ones_like(video[:, :1], dtype=torch.bool))


def _first_frame(path: Path) -> Iterator[Any]:
    from pyramid.data.frames import iter_frames

    return iter_frames(path, max_frames=1)
