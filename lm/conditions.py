"""Tasks as conditions: what is given of a clip beside text, made from pixels and a mask by one function (COMMIT of
MAGVIT, 2212.05199, section 3.2: the unknown pixels are filled, and the filled clip is tokenized).

    video, known -> fill -> tokens -+-> exact tokens of the chunks before the first unknown pixel
                                    +-> hint: its latents, where a cell holds known pixels, and the share of them

A task is a rule that fills, a token of its own (`vocabulary.py`) and, for training, a way to draw masks. What it gives
is a `Condition`; `PyramidLM` knows nothing else of tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyramid.levels import chunk_lengths
from pyramid.tokenizer import PyramidTokenizer
from pyramid.tokens import TokenPyramid

# Video is (B, 3, T, H, W) in [-1, 1]; known (B or 1, 1, T, H, W) bool: the pixels that are given.


@dataclass(frozen=True, eq=False)
class Condition:
    """What is given of B clips. `task`: the name whose token stands first. `tokens`: all levels of the first chunks,
    known exactly; `draft`: the first levels of all chunks. `hint`: tokens of the filled clip, and `share`, one for each
    chunk: which part of each latent cell is known, (B, t, h, w) in [0, 1]; a cell of share 0 gives no hint. `shape`:
    (frames, height, width) of the clips to write, where it is settled."""

    task: str = "generate"
    tokens: TokenPyramid | None = None
    draft: TokenPyramid | None = None
    hint: TokenPyramid | None = None
    share: tuple[Tensor, ...] = ()
    shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        for whole in (self.hint, self.draft):
            if self.shape is None and whole is not None:
                object.__setattr__(self, "shape", (whole.num_frames, whole.height, whole.width))

    def codes(self, chunk: int, level: int) -> Tensor | None:
        """The ids (B, t, h, w) of a block that is given, None of one that is not."""
        for given in (self.tokens, self.draft):
            if given is not None and chunk < given.num_chunks and level < given.num_levels:
                return given.ids[chunk][level]
        return None

    def to(self, device: torch.device | str) -> Condition:
        return self._each(lambda tokens: tokens.to(device), lambda share: share.to(device))

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        """That of some clips of the batch."""
        return self._each(lambda tokens: tokens[rows], lambda share: share[rows])

    def _each(
        self, of_tokens: Callable[[TokenPyramid], TokenPyramid], of_share: Callable[[Tensor], Tensor]
    ) -> Condition:
        tokens, draft, hint = (
            None if part is None else of_tokens(part) for part in (self.tokens, self.draft, self.hint)
        )
        return Condition(self.task, tokens, draft, hint, tuple(of_share(share) for share in self.share), self.shape)


# ---------------------------------------------------------------------------------------------- filling


def fill_constant(video: Tensor, known: Tensor) -> Tensor:
    """Grey where nothing is known."""
    return video * known


def fill_nearest(video: Tensor, known: Tensor) -> Tensor:
    """The nearest pixel of the box of known pixels, which is the same in all frames; grey inside that box."""
    out = torch.empty_like(video)
    for row, mask in enumerate(known.expand(len(video), -1, *video.shape[2:]).amax(dim=(1, 2))):
        ys, xs = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
        if not len(ys):
            out[row] = 0
            continue
        y = torch.arange(video.shape[3], device=video.device).clamp(int(ys[0]), int(ys[-1]))
        x = torch.arange(video.shape[4], device=video.device).clamp(int(xs[0]), int(xs[-1]))
        out[row] = (video[row] * known.expand(len(video), -1, *video.shape[2:])[row])[:, :, y][..., x]
    return out


def fill_between(video: Tensor, known: Tensor) -> Tensor:
    """A frame without known pixels is blended from the nearest frames before and after that have some, by distance."""
    video = video * known
    out = video.clone()
    for row, frames in enumerate(known.expand(len(video), -1, *video.shape[2:]).amax(dim=(1, 3, 4)).tolist()):
        there = [index for index, has in enumerate(frames) if has]
        for t in range(len(frames)):
            before = max((index for index in there if index <= t), default=None)
            after = min((index for index in there if index >= t), default=None)
            ends = [index for index in (before, after) if index is not None]
            if t in there or not ends:
                continue
            weight = (t - ends[0]) / (ends[-1] - ends[0]) if ends[-1] > ends[0] else 0.0
            out[row, :, t] = torch.lerp(video[row, :, ends[0]], video[row, :, ends[-1]], weight)
    return out


def edges(video: Tensor) -> Tensor:
    """How sharply the colour changes at each pixel (Sobel, over the three channels), grey levels in [-1, 1], three
    equal channels: structure without colour, edges between colours of one brightness too. (B, 3, T, H, W) -> the same
    shape."""
    b, c, t, h, w = video.shape
    flat = nn.functional.pad(video.transpose(1, 2).reshape(b * t * c, 1, h, w), (1, 1, 1, 1), mode="replicate")
    sobel = video.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    slopes = nn.functional.conv2d(flat, torch.stack([sobel, sobel.T])[:, None])
    strength = slopes.square().view(b, t, 2 * c, h, w).sum(dim=2).div(3).sqrt().mul(4).tanh() * 2 - 1
    return strength[:, None].expand(-1, 3, -1, -1, -1).contiguous()


def soften(video: Tensor, factor: int) -> Tensor:
    """The clip at 1 / factor of its size, area-averaged, and brought back to its size bilinearly."""
    b, c, t, h, w = video.shape
    flat = video.transpose(1, 2).reshape(b * t, c, h, w)
    small = nn.functional.adaptive_avg_pool2d(flat, (max(1, h // factor), max(1, w // factor)))
    large = nn.functional.interpolate(small, size=(h, w), mode="bilinear", align_corners=False)
    return large.view(b, t, c, h, w).transpose(1, 2)


# ---------------------------------------------------------------------------------------------- masks to train on


def _between(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _span(generator: torch.Generator, size: int, low: float, high: float) -> tuple[int, int]:
    """A random stretch of `low` to `high` of `size`: its start and its end."""
    length = max(1, min(size - 1, round(size * _between(generator, low, high))))
    start = int(torch.randint(size - length + 1, (), generator=generator))
    return start, start + length


def _both_ends(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    known = torch.zeros(shape, dtype=torch.bool)
    known[[0, -1]] = True
    return known


def _around_a_box(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """All but a box; in a third of the draws the box slides across (MAGVIT's dynamic inpainting)."""
    frames, height, width = shape
    (top, bottom), (left, right) = _span(generator, height, 0.25, 0.75), _span(generator, width, 0.25, 0.75)
    known = torch.ones(shape, dtype=torch.bool)
    slides = _between(generator, 0, 1) < 1 / 3
    end = int(torch.randint(width - (right - left) + 1, (), generator=generator)) if slides else left
    for t in range(frames):
        x = round(left + (end - left) * t / max(1, frames - 1))
        known[t, top:bottom, x : x + right - left] = False
    return known


def _inside_a_band(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """A band across, a band along, or a box, of 40 to 80 % of the sides."""
    frames, height, width = shape
    known = torch.zeros(shape, dtype=torch.bool)
    kind = int(torch.randint(3, (), generator=generator))
    rows = (0, height) if kind == 0 else _span(generator, height, 0.4, 0.8)
    columns = (0, width) if kind == 1 else _span(generator, width, 0.4, 0.8)
    known[:, rows[0] : rows[1], columns[0] : columns[1]] = True
    return known


# ---------------------------------------------------------------------------------------------- the tasks


@dataclass(frozen=True)
class Task:
    """`fill`: of the unknown pixels. `replace`: instead, what the model sees in place of the clip, all of which is
    written anew then, made with a factor. `draw`: a mask (T, H, W) to train on."""

    about: str
    fill: Callable[[Tensor, Tensor], Tensor] | None = None
    replace: Callable[[Tensor, int], Tensor] | None = None
    draw: Callable[[tuple[int, int, int], torch.Generator], Tensor] | None = None

    @property
    def hints(self) -> bool:
        """Whether the model is shown a clip beside exact tokens."""
        return self.draw is not None or self.replace is not None


TASKS = {
    "generate": Task("a clip from text"),
    "image": Task("an image from text"),
    "class": Task("a clip of a class, from its name"),
    "unconditional": Task("a clip from nothing"),
    "animate": Task("a clip from its first frame", fill_between),
    "continue": Task("what comes after the frames that are given", fill_between),
    "interpolate": Task("the frames between those that are given", fill_between, draw=_both_ends),
    "inpaint": Task("what is in the hole", fill_constant, draw=_around_a_box),
    "outpaint": Task("what is around", fill_nearest, draw=_inside_a_band),
    "refine": Task("the finer levels of a draft"),
    "upscale": Task("a clip from one of lower resolution", replace=soften),
    "stylize": Task("a clip with the edges of another", replace=lambda video, factor: edges(video)),
}
READING = ("caption", "ask")  # tasks whose answer is text
UPSCALE = 4  # the most that training softens by


def hinted() -> tuple[str, ...]:
    """Names of the tasks whose models are shown a clip beside exact tokens, in the order of `TASKS`."""
    return tuple(name for name, task in TASKS.items() if task.hints)


def make_condition(
    tokenizer: PyramidTokenizer,
    task: str,
    video: Tensor,
    known: Tensor | None = None,
    *,
    done: Tensor | None = None,
    factor: int = UPSCALE,
    levels: int = 1,
) -> Condition:
    """What `task` gives of clips.

    Args:
        video: (B, 3, T, H, W) in [-1, 1]; unknown pixels may have any finite value.
        known: bool, (T, H, W), (1 or B, 1, T, H, W): the given pixels; all by default.
        done: of tasks that write a clip anew ("stylize", "upscale", "refine"): its first frames, (B, 3, t, H, W),
            written before.
        factor: of "upscale": how much lower the resolution is. levels: of "refine": those that are kept.

    Returns the condition for clips of this very length and size.

    Raises ValueError for a task that takes no pixels, or a mask of another shape.
    """
    if task == "refine":
        return Condition(task, None if done is None else tokenizer.encode(done), tokenizer.encode(video, levels))
    if task not in TASKS or (TASKS[task].fill is None and TASKS[task].replace is None):
        takes = ", ".join(name for name, rule in TASKS.items() if rule.fill or rule.replace or name == "refine")
        raise ValueError(f"make_condition: expected a task that is given pixels, one of {takes}, got {task!r}")
    rule, shape = TASKS[task], (1, 1, *video.shape[2:])
    if known is None:
        known = torch.ones(shape, dtype=torch.bool, device=video.device)
    known = known[None, None] if known.dim() == 3 else known
    if known.dtype != torch.bool or known.shape[1:] != shape[1:] or known.shape[0] not in (1, len(video)):
        expected = f"bool (1 or {len(video)}, {', '.join(map(str, shape[1:]))})"
        raise ValueError(f"make_condition: known: expected {expected}, got {known.dtype} {tuple(known.shape)}")
    known = known.to(video.device)
    share = cell_share(known.expand(len(video), *shape[1:]), tokenizer)
    if rule.replace is not None:
        hint = tokenizer.encode(rule.replace(video, factor))
        return Condition(task, None if done is None else tokenizer.encode(done), None, hint, share)
    assert rule.fill is not None  # of the two, one is there
    shown = tokenizer.encode(torch.where(known, video, rule.fill(torch.nan_to_num(video), known)))
    exact = 0
    lengths = chunk_lengths(video.shape[2], tokenizer.config.chunk_frames)
    while exact < len(lengths) and known[:, :, : sum(lengths[: exact + 1])].all():
        exact += 1
    tokens = shown.first(sum(lengths[:exact]), exact) if exact else None
    rest = any(part.any() for part in share[exact:])
    return Condition(task, tokens, None, shown if rest else None, share if rest else (), tuple(video.shape[2:]))


def cell_share(known: Tensor, tokenizer: PyramidTokenizer) -> tuple[Tensor, ...]:
    """Known pixels (B, 1, T, H, W) bool -> for each chunk the known share of each latent cell, float32 (B, t, h, w). A
    chunk that is cut short counts its missing frames as its last one, a side that the stride does not divide its
    missing pixels as the last ones: so they are encoded."""
    c = tokenizer.config
    missing = (-known.shape[4] % c.stride, -known.shape[3] % c.stride, -(known.shape[2] - 1) % c.chunk_frames)
    padded = nn.functional.pad(known.float(), (0, missing[0], 0, missing[1], 0, missing[2]), mode="replicate")
    parts = padded.split(chunk_lengths(padded.shape[2], c.chunk_frames), dim=2)
    return tuple(
        nn.functional.avg_pool3d(part, (min(part.shape[2], c.time_stride), c.stride, c.stride))[:, 0] for part in parts
    )


def draw_condition(tokenizer: PyramidTokenizer, task: str, video: Tensor, generator: torch.Generator) -> Condition:
    """The condition of a hinted task to train on: a mask or a factor drawn for each of the clips (B, 3, T, H, W)."""
    rule = TASKS[task]
    if rule.draw is not None:
        shape = (video.shape[2], video.shape[3], video.shape[4])
        known = torch.stack([rule.draw(shape, generator) for _ in video])[:, None]
        return make_condition(tokenizer, task, video, known)
    factor = int(torch.randint(2, UPSCALE + 1, (), generator=generator))
    return make_condition(tokenizer, task, video, factor=factor)
