"""`pyramid reconstruct`: clips through the tokenizer and back at one detail or several, in constant memory.

A clip keeps its size as a viewer sees it (pixels become square) and its frames, at one rate: where the rate varies,
frames move in time, and a line on stderr says so. Sound is not kept. Several details come from one pass over the file:
the encoder's tokens and the decoders of all details advance chunk by chunk together.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.console import Console
from tasks.files import claim, find_clips, name_outputs, tagged
from tasks.models import codebook_sizes, load_tokenizer
from tasks.options import Device, Inputs, Json, Model, Overwrite, check_device, parse_details

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pyramid.nn.blocks import State
    from pyramid.tokenizer import PyramidTokenizer
    from pyramid.tokens import TokenPyramid

_SHEET_COLUMNS, _SHEET_SIDE = 8, 192


def reconstruct(
    inputs: Inputs,
    detail: Annotated[str, typer.Option("--detail", "-d", help="Levels to use: 3, 1,3, 1-3 or all.")] = "all",
    model: Model = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="A folder (v1.0 is one too), or for one clip a file such as x.gif."),
    ] = Path("runs/reconstruct"),
    suffix: Annotated[str, typer.Option(help="Format where --out is a folder: .mp4 .gif .png (a sheet) ...")] = ".mp4",
    max_side: Annotated[
        int | None, typer.Option(min=1, help="Shrink clips to this longer side first.", show_default=False)
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="Work on frames in tiles of so many pixels a side: less memory.", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Encode and decode clips, at one detail or several.

    Writes one clip a detail, or, as .png, a sheet that shows all details side by side. A clip keeps its size and its
    frames, at one rate; sound is not kept. Memory does not grow with its length.
    """
    with Console("reconstruct", as_json, writes=True) as console:
        paths = find_clips(inputs)
        targets = dict(zip(paths, name_outputs(paths, out, suffix), strict=True))
        tokenizer = load_tokenizer(model, check_device(device))
        details = parse_details(detail, tokenizer.num_levels)
        files = {path: _output_files(target, details) for path, target in targets.items()}
        claim((name for names in files.values() for name in names.values()), overwrite, inputs=paths)

        def work(path: Path) -> None:
            for record in reconstruct_file(tokenizer, path, files[path], console, overwrite, max_side, tile):
                console.emit(record, _line(record))

        return console.each(paths, work)


def _output_files(target: Path, details: list[int]) -> dict[int, Path]:
    """The file of each detail; a sheet holds them all."""
    if target.suffix.lower() == ".png" or len(details) == 1:
        return dict.fromkeys(details, target)
    return {k: tagged(target, f"detail-{k}") for k in details}


@dataclass
class _Score:
    """What is counted for one detail while the clip passes."""

    squared_error: float = 0.0
    values: int = 0
    tokens: int = 0
    bits: float = 0.0
    frames: int = 0
    strip: Any = field(default=None)

    @property
    def psnr(self) -> float:
        """Of all pixels of all frames, 8 bit. Infinite for equal clips."""
        return math.inf if self.squared_error == 0 else 10 * math.log10(255**2 * self.values / self.squared_error)


def reconstruct_file(
    tokenizer: PyramidTokenizer,
    path: Path,
    files: dict[int, Path],
    console: Console,
    overwrite: bool = False,
    max_side: int | None = None,
    tile: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Write the reconstruction of one clip at every detail in `files`; yields a record a detail.

    Raises VideoError for a file that gives no video; nothing half-written stays behind.
    """
    from pyramid.data.frames import probe
    from pyramid.data.transforms import to_uint8
    from pyramid.data.video import VideoWriter
    from tasks.clips import name_losses, shown_size, stream_chunks, thinned_rate, written_rate

    info = probe(path)
    first = next(iter(files.values()))
    sheet = len(set(files.values())) == 1 and first.suffix.lower() == ".png"
    rate = written_rate(info, first, tokenizer.config.fps)
    scores = {k: _Score() for k in files}
    strips = {k: _strip() for k in (0, *files)} if sheet else {}
    height, width = size = shown_size(info, max_side)
    if not sheet:
        name_losses(path, info, first, rate, console)
    chunks = stream_chunks(path, tokenizer.config.chunk_frames, fps=thinned_rate(info, first), size=size)
    chunks = console.track(chunks, path.name, _num_chunks(tokenizer, info.frames))
    with contextlib.ExitStack() as stack:
        writers: dict[int, VideoWriter] = {}
        for original, tokens, decoded in _roundtrip(tokenizer, chunks, list(files), tile):
            for k, file in files.items() if not sheet and not writers else ():
                file.parent.mkdir(parents=True, exist_ok=True)
                writers[k] = stack.enter_context(VideoWriter(file, fps=rate, overwrite=overwrite))
            source = to_uint8(original[0]).numpy(force=True)
            _add(strips, 0, source)
            for k, video in decoded.items():
                frames = to_uint8(video[0]).numpy(force=True)
                _count(scores[k], tokenizer, tokens, k, source, frames)
                _add(strips, k, frames)
                for frame in frames if writers else ():
                    writers[k].write(frame)
    if sheet:
        _write_sheet(first, strips, scores, overwrite)
    for k, score in scores.items():
        yield {
            "input": str(path),
            "output": str(files[k]),
            "detail": k,
            "psnr": None if math.isinf(score.psnr) else round(score.psnr, 3),
            "tokens": score.tokens,
            "bits_per_pixel": round(3 * score.bits / score.values, 5),
            "frames": score.frames,
            "width": width,
            "height": height,
            "fps": rate,
        }


def _line(record: dict[str, Any]) -> str:
    psnr = "equal" if record["psnr"] is None else f"{record['psnr']:.2f} dB"
    size = f"{record['frames']} frames of {record['width']}x{record['height']}"
    cost = f"{record['tokens']} tokens, {record['bits_per_pixel']} bits a pixel"
    return f"{record['output']}: detail {record['detail']}, {size}, {psnr}, {cost}"


def _num_chunks(tokenizer: PyramidTokenizer, frames: int | None) -> int | None:
    return None if frames is None else 1 + -(-(frames - 1) // tokenizer.config.chunk_frames)


def _roundtrip(
    tokenizer: PyramidTokenizer, chunks: Iterator[Tensor], details: list[int], tile: int | None
) -> Iterator[tuple[Tensor, TokenPyramid, dict[int, Tensor]]]:
    """(chunk, its tokens, its reconstruction at each detail), one chunk at a time. Not by `encode_stream`,
    `decode_stream` and `itertools.tee`: a tee keeps up to 57 items alive that all its readers have passed."""
    from pyramid.tokens import TokenPyramid

    encoder: State | None = None
    decoders: dict[int, State | None] = dict.fromkeys(details)
    for chunk in chunks:
        ids, encoder = tokenizer.encode_chunk(chunk, encoder, max(details), tile=tile)
        tokens = TokenPyramid((ids,), *chunk.shape[2:])
        decoded = {}
        for k in details:
            video, decoders[k] = tokenizer.decode_chunk(
                ids[:k], decoders[k], height=tokens.height, width=tokens.width, tile=tile
            )
            decoded[k] = video[:, :, : tokens.num_frames]
        yield chunk, tokens, decoded


def _count(
    score: _Score, tokenizer: PyramidTokenizer, tokens: TokenPyramid, k: int, source: np.ndarray, frames: np.ndarray
) -> None:
    for original, frame in zip(source, frames, strict=True):  # one by one: a chunk of large ones takes much memory
        difference = original.astype("int32") - frame
        score.squared_error += float((difference * difference).sum(dtype="int64"))
    score.values += source.size
    score.frames += len(source)
    score.tokens += tokens.num_tokens(k)
    for pyramid in tokens.pyramids:
        sizes = codebook_sizes(tokenizer)[:k]
        score.bits += sum(n * math.log2(size) for n, size in zip(pyramid.counts[:k], sizes, strict=True))


def _strip() -> Any:
    from tasks.clips import Spread

    return Spread(2 * _SHEET_COLUMNS)


def _add(strips: dict[int, Any], k: int, frames: np.ndarray) -> None:
    """Keep the frames of one row of the sheet, small."""
    from pyramid.data.transforms import resize_frame

    for frame in frames if strips else ():
        height, width = frame.shape[:2]
        scale = min(1.0, _SHEET_SIDE / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        strips[k].add(resize_frame(frame, size, "stretch"))


def _write_sheet(file: Path, strips: dict[int, Any], scores: dict[int, _Score], overwrite: bool) -> None:
    import numpy as np

    from pyramid.data.transforms import from_uint8
    from pyramid.data.video import VideoWriter, contact_sheet

    columns = min(_SHEET_COLUMNS, strips[0].count)
    rows = [from_uint8(np.stack(strip.pick(columns))) for strip in strips.values()]
    file.parent.mkdir(parents=True, exist_ok=True)
    labels = ["original", *(f"detail {k}: {s.psnr:.1f} dB, {s.tokens} tokens" for k, s in scores.items())]
    with VideoWriter(file, overwrite=overwrite) as writer:
        writer.write(contact_sheet(rows, labels, max_frames=columns))
