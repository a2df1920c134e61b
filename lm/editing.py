"""Editing and making clips of any length in constant memory: stages over a stream of pieces.

A *piece* is some consecutive frames: `video` (1, 3, t, H, W) in [-1, 1] and `known` (1, 1, t, H, W) bool, the pixels
that are final. A stage takes a stream of pieces and gives one; stages chain, and a clip of hours takes no more memory
than one of seconds. The model works in windows of the length it was trained on: the last frames of what is done are
encoded anew and given exactly, the frames after them are written.

    frames -> stage (inpaint) -> stage (outpaint) -> stage (extend) -> frames
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lm.conditions import TASKS, Condition, make_condition
from pyramid.tokens import TokenPyramid
from pyramid.training import mix_seed

if TYPE_CHECKING:
    from lm.model import PyramidLM


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive frames of a clip. `video` (1, 3, t, H, W) in [-1, 1]; `known` (1, 1, t, H, W) bool: final pixels."""

    video: Tensor
    known: Tensor

    @property
    def num_frames(self) -> int:
        return self.video.shape[2]

    def crop(self, box: Box) -> Piece:
        return Piece(self.video[..., box.rows, box.columns], self.known[..., box.rows, box.columns])

    def frames(self, start: int, stop: int) -> Piece:
        return Piece(self.video[:, :, start:stop], self.known[:, :, start:stop])


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.width)


Pieces = Iterable[Piece]


@dataclass(frozen=True)
class Writer:
    """A model with all that says how it writes. `prompt`: a text, or the text of the window that begins at a frame.
    `decoding`: fields of `Decoding`; `detail`: levels, all by default; `watch`: called with the chunk, the level,
    the clip so far, as `on_block` of `PyramidLM.generate`."""

    lm: PyramidLM
    prompt: str | Callable[[int], str] = ""
    negative: str = ""
    detail: int | None = None
    seed: int = 0
    decoding: dict[str, Any] = dataclasses.field(default_factory=dict)
    watch: Callable[[int, int, tuple[Tensor, ...], tuple[int, int]], None] | None = None

    def __post_init__(self) -> None:
        if self.window <= self.overlap:
            raise ValueError(f"Writer: expected a model of clips of more than one chunk, got {self.window} frames")

    @property
    def window(self) -> int:
        """Frames that are written at once."""
        return self.lm.tokenizer.config.num_frames

    @property
    def overlap(self) -> int:
        """Of them those that are given from the window before: all chunks but the last."""
        return max(1, self.window - self.lm.tokenizer.config.chunk_frames)

    def starts(self, num_frames: int) -> list[int]:
        """The first frames of the windows that a clip of so many frames is written in."""
        return [0, *range(self.window, num_frames, self.window - self.overlap)]

    def apart(self, number: int) -> Writer:
        """The same for another stage or place of the same frames: with draws of its own."""
        return dataclasses.replace(self, seed=mix_seed(self.seed, 0, number))

    @property
    def onward(self) -> str:
        """The task that writes all windows but the first."""
        return "animate" if self.overlap == 1 else "continue"

    def write(self, condition: Condition, num_frames: int, size: tuple[int, int], start: int) -> Tensor:
        """Video (1, 3, num_frames, *size) of the window that begins at frame `start`."""
        prompt, watch = self.prompt if isinstance(self.prompt, str) else self.prompt(start), self.watch
        tokens = self.lm.generate(
            [prompt],
            self.detail,
            condition=condition,
            num_frames=num_frames,
            size=size,
            seed=mix_seed(self.seed, start) if start else self.seed,
            negative=self.negative,
            on_block=None if watch is None else lambda chunk, level, ids: watch(chunk, level, ids, size),
            **self.decoding,
        )
        return self.lm.tokenizer.decode(tokens)


def whole(video: Tensor) -> Iterator[Piece]:
    """A clip (1, 3, T, H, W), all known, as a stream of one piece."""
    yield Piece(video, torch.ones_like(video[:, :1], dtype=torch.bool))


def joined(pieces: Pieces) -> Tensor:
    """All frames, (1, 3, T, H, W): the stream's end, where the clip is short. Raises ValueError for no frame."""
    videos = [piece.video for piece in pieces]
    if not videos:
        raise ValueError("joined: expected at least one frame, got none")
    return torch.cat(videos, dim=2)


def regroup(pieces: Pieces, first: int, then: int) -> Iterator[Piece]:
    """The same frames, `first` in the first piece and `then` in the others; the last may be shorter."""
    waiting: Piece | None = None
    wanted = first
    for piece in pieces:
        waiting = piece if waiting is None else _together(waiting, piece)
        while waiting.num_frames > wanted:  # one frame more, so that the last piece is known to be the last
            yield waiting.frames(0, wanted)
            waiting, wanted = waiting.frames(wanted, waiting.num_frames), then
    if waiting is not None:
        yield waiting


def _together(a: Piece, b: Piece) -> Piece:
    return Piece(torch.cat([a.video, b.video], dim=2), torch.cat([a.known, b.known], dim=2))


def forget(pieces: Pieces, box: Box) -> Iterator[Piece]:
    """A stage: what is inside the box is not known any more."""
    for piece in pieces:
        known = piece.known.clone()
        known[..., box.rows, box.columns] = False
        yield Piece(piece.video, known)


def widen(pieces: Pieces, size: tuple[int, int], left: int, top: int) -> Iterator[Piece]:
    """A stage: the frames within larger ones of `size` (height, width), nothing known around them."""
    for piece in pieces:
        b, c, t, h, w = piece.video.shape
        place = (..., slice(top, top + h), slice(left, left + w))
        video, known = piece.video.new_zeros(b, c, t, *size), piece.known.new_zeros(b, 1, t, *size)
        video[place], known[place] = piece.video, piece.known
        yield Piece(video, known)


def paint(writer: Writer, pieces: Pieces, task: str, box: Box | None = None, **options: Any) -> Iterator[Piece]:
    """A stage that writes what is not known inside `box` (the whole frame by default), window by window; what is known
    comes out as it came in, bit for bit. `task`: "inpaint", "outpaint", "interpolate"; or "stylize", "upscale" and
    "refine", which write all of the box anew. `options`: as `make_condition`."""
    anew = TASKS[task].fill is None
    done: Tensor | None = None
    start = 0
    for piece in regroup(pieces, writer.window, writer.window - writer.overlap):
        inside = piece if box is None else piece.crop(box)
        if anew or not inside.known.all():
            written = _window(writer, inside, done, task, start, options)
            written = written if anew else torch.where(inside.known, inside.video, written)
        else:
            written = inside.video
        done = _tail(written if done is None else torch.cat([done, written], dim=2), writer.overlap)
        start += piece.num_frames
        yield _put(piece, written, box)


def _tail(video: Tensor, overlap: int) -> Tensor:
    """The last frames, as many as are given to the next window. Of a single frame that one; before a clip of more, but
    fewer than that, its first frame stands still."""
    missing = overlap - video.shape[2]
    if missing > 0 and video.shape[2] > 1:
        return torch.cat([video[:, :, :1].expand(-1, -1, missing, -1, -1), video], dim=2)
    return video[:, :, -overlap:]


def _window(
    writer: Writer, piece: Piece, done: Tensor | None, task: str, start: int, options: dict[str, Any]
) -> Tensor:
    """The frames of a piece, written after the frames that are done, (1, 3, t, H, W)."""
    video, known = piece.video, piece.known
    if done is not None:
        video = torch.cat([done, video], dim=2)
        known = torch.cat([torch.ones_like(done[:, :1], dtype=torch.bool), known], dim=2)
    condition = make_condition(writer.lm.tokenizer, task, video, known, done=done, **options)
    written = writer.write(condition, video.shape[2], (video.shape[3], video.shape[4]), start)
    return written[:, :, -piece.num_frames :].to(piece.video)


def _put(piece: Piece, written: Tensor, box: Box | None) -> Piece:
    """A piece with a box of it written, all of the box known."""
    if box is None:
        return Piece(written, torch.ones_like(piece.known))
    video, known = piece.video.clone(), piece.known.clone()
    video[..., box.rows, box.columns], known[..., box.rows, box.columns] = written, True
    return Piece(video, known)


def outpaint(writer: Writer, pieces: Pieces, size: tuple[int, int], known: Box) -> Iterator[Piece]:
    """A stage that writes what is around the box `known` in frames of `size` (height, width): step by step outward, in
    boxes (`outward`), at least half of each known."""
    trained = writer.lm.tokenizer.config.size
    for number, box in enumerate(outward(size, known, trained)):
        pieces = paint(writer.apart(number), pieces, "outpaint", box)
    yield from pieces


def outward(size: tuple[int, int], known: Box, trained: tuple[int, int]) -> list[Box]:
    """The boxes in which to write what is around `known`, in order: to the left and right first, then above and below.

    >>> outward((8, 20), Box(6, 0, 8, 8), (8, 8))
    [Box(left=2, top=0, width=8, height=8), Box(left=0, top=0, width=8, height=8), \
Box(left=10, top=0, width=8, height=8), Box(left=12, top=0, width=8, height=8)]
    """
    boxes = []
    for low, high, side in _steps(known.left, known.left + known.width, size[1], trained[1]):
        boxes.append(Box(low, known.top, min(side, high - low), known.height))
    for low, high, side in _steps(known.top, known.top + known.height, size[0], trained[0]):
        boxes.append(Box(0, low, size[1], min(side, high - low)))
    return boxes


def _steps(first: int, last: int, size: int, side: int) -> list[tuple[int, int, int]]:
    """Stretches (start, end, longest side) that grow [first, last) to [0, size), half of each of them new at most."""
    side = min(side, size)
    step, stretches = max(1, side // 2), []
    low = first
    while low > 0:
        low = max(0, low - step)
        stretches.append((low, min(size, low + side), side))
    high = last
    while high < size:
        high = min(size, high + step)
        stretches.append((max(0, high - side), high, side))
    return stretches


def roll(writer: Writer, num_frames: int, size: tuple[int, int] | None = None) -> Iterator[Piece]:
    """A clip of any length from text: the first window by "generate", the others by "continue". The prompt may change
    with the frame (a storyboard)."""
    size = writer.lm.tokenizer.config.size if size is None else size
    first = min(num_frames, writer.window)
    task = "generate" if first > 1 or "image" not in writer.lm.config.tasks else "image"
    video = writer.write(Condition(task), first, size, 0)
    piece = Piece(video, torch.ones_like(video[:, :1], dtype=torch.bool))
    yield piece
    yield from _onward(writer, _tail(video, writer.overlap), first, num_frames)


def extend(writer: Writer, pieces: Pieces, num_frames: int) -> Iterator[Piece]:
    """A stage that lets a clip pass and adds `num_frames` frames that come after it: by "animate" after a single frame,
    else by "continue"."""
    done: Tensor | None = None
    start = 0
    for piece in pieces:
        done = piece.video if done is None else torch.cat([done, piece.video], dim=2)
        done = done[:, :, -writer.overlap :]
        start += piece.num_frames
        yield piece
    if done is None:
        raise ValueError("extend: expected at least one frame to go on from, got none")
    yield from _onward(writer, _tail(done, writer.overlap), start, start + num_frames)


def _onward(writer: Writer, done: Tensor, start: int, stop: int) -> Iterator[Piece]:
    """Frames from `start` to `stop`, after those that are done."""
    while start < stop:
        count = min(writer.window - done.shape[2], stop - start)
        task = "animate" if done.shape[2] == 1 else "continue"
        condition = Condition(task, writer.lm.tokenizer.encode(done))
        size = (done.shape[3], done.shape[4])
        fresh = writer.write(condition, done.shape[2] + count, size, start)[:, :, -count:]
        yield Piece(fresh, torch.ones_like(fresh[:, :1], dtype=torch.bool))
        done = _tail(torch.cat([done, fresh], dim=2), writer.overlap)
        start += count


def between(writer: Writer, first: Tensor, last: Tensor, num_frames: int) -> Tensor:
    """The clip (1, 3, num_frames, H, W) that leads from one image (1, 3, 1, H, W) to another; these come out as they
    are. Raises ValueError for fewer than 3 frames, or more than a window."""
    if not 3 <= num_frames <= writer.window:
        raise ValueError(f"between: num_frames: expected from 3 to {writer.window}, got {num_frames}")
    if first.shape != last.shape or first.shape[2] != 1:
        raise ValueError(
            f"between: expected two images (1, 3, 1, H, W), got {tuple(first.shape)} and {tuple(last.shape)}"
        )
    video = torch.cat([first, first.new_zeros(1, 3, num_frames - 2, *first.shape[3:]), last], dim=2)
    known = torch.zeros_like(video[:, :1], dtype=torch.bool)
    known[:, :, [0, -1]] = True
    return joined(paint(writer, [Piece(video, known)], "interpolate"))


def refine(writer: Writer, draft: TokenPyramid) -> Tensor:
    """The video of a draft, tokens of the first levels of one clip, with the finer levels written. Raises ValueError
    for a draft that has all levels already."""
    detail = writer.lm.num_levels if writer.detail is None else writer.detail
    if draft.num_levels >= detail:
        raise ValueError(f"refine: expected a draft of fewer than {detail} levels, got {draft.num_levels}")
    return writer.write(Condition("refine", draft=draft), draft.num_frames, (draft.height, draft.width), 0)


def resized(video: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 3, T, H, W) -> (1, 3, T, *size), bilinear with antialiasing; the same tensor where the size is the same."""
    if video.shape[3:] == size:
        return video
    flat = video.transpose(1, 2).flatten(0, 1)
    flat = nn.functional.interpolate(flat, size=size, mode="bilinear", antialias=True, align_corners=False)
    return flat.clamp(-1, 1).unflatten(0, (video.shape[0], video.shape[2])).transpose(1, 2)
