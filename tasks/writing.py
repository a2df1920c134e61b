"""What `generate`, `edit` and `storyboard` share: how a model is to write, what is shown on the way, the file at the
end."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.console import Console

if TYPE_CHECKING:
    from torch import Tensor

    from lm.editing import Piece
    from lm.model import PyramidLM
    from pyramid.nn.blocks import State

Negative = Annotated[str, typer.Option("--negative", help="What it is not to be; needs --guidance above 1.")]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        min=0.0,
        help="0 ignores the prompt, 1 follows it as learned, more presses it; the model's by default.",
        show_default=False,
    ),
]
Decoder = Annotated[
    str | None,
    typer.Option("--decoder", help="next-level, masked or raster; the model's by default.", show_default=False),
]
Passes = Annotated[
    str | None,
    typer.Option(
        "--passes",
        help="Of masked: passes a block of tokens, one number or one a level: 1,1,2,4. The model's by default.",
        show_default=False,
    ),
]
Order = Annotated[
    str | None, typer.Option("--order", help="Of masked: random, halton or confidence.", show_default=False)
]
Temperature = Annotated[
    str | None,
    typer.Option("--temperature", help="0 takes the likeliest code; one number or one a level.", show_default=False),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", min=0.0, max=1.0, help="Sample from this share of the probability.", show_default=False),
]
PreviewFolder = Annotated[
    Path | None,
    typer.Option("--preview", help="A folder: a picture of every level as it comes.", show_default=False),
]


def decoding_options(
    decoder: str | None,
    passes: str | None,
    order: str | None,
    temperature: str | None,
    top_p: float | None,
    guidance: float | None,
    negative: str = "",
) -> dict[str, Any]:
    """The fields of `Decoding` that were given, checked. Raises ValueError for one that is out of range, or that would
    change nothing beside the others."""
    from lm.decoding import Decoding

    given = {
        "decoder": decoder,
        "passes": _numbers("--passes", passes, int),
        "order": order,
        "temperature": _numbers("--temperature", temperature, float),
        "top_p": top_p,
        "guidance": guidance,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for flag, value in (("--passes", passes), ("--order", order)):
        if value is not None and options.setdefault("decoder", "masked") != "masked":
            raise ValueError(f"{flag}: expected --decoder masked, which alone takes it, got {decoder}")
    if negative and guidance == 1:
        raise ValueError("--negative: expected --guidance above 1, which presses away from it, got 1")
    if "passes" in options:
        options["first_passes"] = ()
    Decoding(**options)
    return options


def _numbers(flag: str, text: str | None, kind: type) -> tuple | None:
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{flag}: expected a number, or one a level such as 1,1,2,4, got {text!r}") from None


class Preview:
    """Called as `on_block`: writes a picture of the window so far when a level of a chunk is done, coarse ones first:
    `window-1.chunk-2.level-3.png`, all frames up to that chunk, this one at that level."""

    def __init__(self, lm: PyramidLM, folder: Path) -> None:
        self.lm, self.folder = lm, folder
        self.window = 0
        self.before: State | None = None
        self.after: State | None = None
        self.frames: list[Tensor] = []

    def __call__(self, chunk: int, level: int, ids: tuple[Tensor, ...], size: tuple[int, int]) -> None:
        import torch

        from pyramid.data.video import VideoWriter, contact_sheet

        if level == 0:
            if chunk == 0:
                self.window, self.after, self.frames = self.window + 1, None, []
            self.before = self.after
        height, width = size
        first = tuple(part[:1] for part in ids)
        video, self.after = self.lm.tokenizer.decode_chunk(first, self.before, height=height, width=width)
        self.frames = [*self.frames[:chunk], video]
        sheet = contact_sheet(
            [torch.cat(self.frames, dim=2)[0]], [f"chunk {chunk + 1}, level {level + 1}"], max_frames=9
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"window-{self.window}.chunk-{chunk + 1}.level-{level + 1}.png"
        with VideoWriter(self.folder / name, overwrite=True) as writer:
            writer.write(sheet)


def write_pieces(
    file: Path, pieces: Iterable[Piece], fps: float, console: Console, overwrite: bool, total: int | None = None
) -> int:
    """Write a stream of pieces as it comes, .png as a sheet; returns the number of frames."""
    from pyramid.data.transforms import to_uint8
    from pyramid.data.video import VideoWriter

    count = 0
    with ExitStack() as stack:
        target: VideoWriter | None = None
        for piece in console.track(pieces, file.name, total):
            if target is None:  # once there is something to write
                file.parent.mkdir(parents=True, exist_ok=True)
                target = stack.enter_context(VideoWriter(file, fps=fps, overwrite=overwrite))
            for frame in to_uint8(piece.video[0]).numpy(force=True):
                target.write(frame)
                count += 1
    return count
