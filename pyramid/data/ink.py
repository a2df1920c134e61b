"""Timed strokes as a clip of ink growing: frame t shows what the pen had written by time t.

A drawing is cut into short pieces, each of which belongs to the first frame that shows it. A piece covers the pixels
near it as a capsule does, anti-aliased by their distance from its axis; a pixel's ink is the most that any piece up to
the frame gave it. So every piece is drawn once, whatever the number of frames, and ink never fades.

The pen: its path is the polyline of the points, smoothed over a pixel of the canvas (a mouse gave whole pixels); the
line is a little thicker where the pen is slow. Time: a pause, pen up or down, counts as `max_pause` at most; what
remains is scaled to the clip, and the last eighth of the frames shows the finished character.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter1d

from pyramid.data.omniglot import CANVAS
from pyramid.data.paper import INKS, PAPERS, make_ink, make_paper

_STEP = 0.5  # of the path, in pixels of the canvas
_SMOOTH = 1.0  # deviation of the smoothing, in pixels of the canvas
_WIDTH = 0.034  # of a plain line, of the shorter side: 3.6 pixels of the canvas; Omniglot's pictures have 4 to 5


@dataclass(frozen=True)
class InkConfig:
    """What the clips look like. `plain`: black on white, the canvas as it is; else ink, paper, pen width and the
    place, size and tilt of the character are drawn at random. `max_pause`: in seconds."""

    height: int = 64
    width: int = 64
    num_frames: int = 17
    plain: bool = False
    max_pause: float = 0.4

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 16:
            raise ValueError(f"InkConfig: height and width must be at least 16, got {self.height}x{self.width}")
        if self.num_frames < 1:
            raise ValueError(f"InkConfig: num_frames must be at least 1, got {self.num_frames}")
        if not 0 < self.max_pause < math.inf:
            raise ValueError(f"InkConfig: max_pause must be positive and finite, got {self.max_pause}")


@dataclass(frozen=True)
class Look:
    """How one clip is drawn. `ink` and `paper` are names, `width` is of the line, relative to the shorter side; zoom,
    tilt (radians) and shift (of the room left beside the canvas and a tenth of it, in [-1, 1]) place the canvas."""

    ink: str = "black"
    paper: str = "plain"
    width: float = _WIDTH
    zoom: float = 1.0
    tilt: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)


def draw_look(rng: np.random.Generator) -> Look:
    """A look at random."""
    return Look(
        ink=list(INKS)[rng.integers(len(INKS))],
        paper=PAPERS[rng.integers(len(PAPERS))],
        width=_WIDTH * rng.uniform(0.75, 1.25),
        zoom=rng.uniform(0.9, 1.2),
        tilt=rng.uniform(-0.09, 0.09),
        shift=(rng.uniform(-1, 1), rng.uniform(-1, 1)),
    )


def render_ink(
    strokes: Sequence[np.ndarray], config: InkConfig, rng: np.random.Generator
) -> tuple[Look, Iterator[np.ndarray]]:
    """A drawing as a clip.

    Args:
        strokes: (N, 3) each, as `omniglot.parse_strokes` gives them.
        rng: of the look, the paper and the ink; nothing is drawn from it for a plain clip.

    Returns:
        The look, and the frames one at a time, uint8 (H, W, 3), `config.num_frames` of them.
    """
    height, width = config.height, config.width
    look = Look() if config.plain else draw_look(rng)
    paper = np.ones((height, width, 3), np.float32)
    ink = np.zeros(3)
    if not config.plain:
        paper, ink = make_paper(look.paper, height, width, rng), make_ink(look.ink, rng)
    return look, _frames(_pieces(strokes, config, look), config, paper, ink)


def _frames(pieces: _Pieces, config: InkConfig, paper: np.ndarray, ink: np.ndarray) -> Iterator[np.ndarray]:
    difference = ink.astype(np.float32) - paper
    coverage = np.zeros((config.height, config.width), np.float32)
    bounds = np.searchsorted(pieces.frame, np.arange(config.num_frames + 1))
    for first, last in pairwise(bounds):
        if first < last:
            _cover(coverage, pieces.x[first:last], pieces.y[first:last], pieces.radius[first:last])
        yield ((paper + coverage[..., None] * difference) * 255 + 0.5).astype(np.uint8)


# ---------------------------------------------------------------------------------------------- time


def frame_times(num_frames: int, duration: float) -> np.ndarray:
    """How far the writing is at each frame, (T,) in the unit of `duration`: from 0 evenly to the end, which the last
    eighth of the frames shows; a clip of one frame shows the end."""
    moving = num_frames - 1 - (num_frames - 1) // 8
    if moving == 0:
        return np.full(num_frames, duration)
    return duration * np.minimum(np.arange(num_frames) / moving, 1.0)


def cap_pauses(times: np.ndarray, max_pause: float) -> np.ndarray:
    """Times (N,) with every step from one point to the next cut to `max_pause`."""
    return np.concatenate([[0.0], np.cumsum(np.minimum(np.diff(times), max_pause))])


# ---------------------------------------------------------------------------------------------- the path


@dataclass(frozen=True)
class _Pieces:
    """Pieces of the path in the order of their frames: x, y and radius in pixels of the frame, (P, 2) each, at both
    ends of a piece; frame (P,), the first that shows it."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    frame: np.ndarray


def _pieces(strokes: Sequence[np.ndarray], config: InkConfig, look: Look) -> _Pieces:
    """Cuts the path at every frame time, and between those into pieces of about half a radius.

    Progress u is the length of ink so far, in pixels of the canvas, plus one for every time the pen went down: so the
    moment of each u is known, and a dot, which has no length, has a moment too.
    """
    points = np.concatenate(strokes)
    times = cap_pauses(points[:, 2] / 1000, config.max_pause)
    starts = np.cumsum([len(stroke) for stroke in strokes])[:-1]
    steps = np.hypot(*np.diff(points[:, :2], axis=0, prepend=points[:1, :2]).T)
    steps[starts] = 1.0
    progress = np.cumsum(steps)
    seen = np.interp(frame_times(config.num_frames, times[-1]), times, progress)  # u at each frame
    seen[-1] = progress[-1]

    parts = (np.split(values, starts) for values in (progress, points[:, :2], times))
    lines, paths, speeds = zip(*map(_smooth, *parts), strict=True)
    short = min(config.height, config.width)
    path, scale = _place(np.concatenate(paths), config, look)
    placed = np.split(path, np.cumsum([len(line) for line in lines])[:-1])
    radii = _radii(speeds, 0.5 * look.width * short)

    found = []
    for u, xy, r in zip(lines, placed, radii, strict=True):
        count = math.ceil((u[-1] - u[0]) * scale / (0.5 * max(1.0, r.mean())))
        cuts = np.union1d(np.linspace(u[0], u[-1], count + 1), seen[(seen > u[0]) & (seen < u[-1])])
        cuts = np.concatenate([cuts[:1], cuts])  # the pen touches the paper before it moves: a piece without length
        x, y, r = (np.interp(cuts, u, values) for values in (xy[:, 0], xy[:, 1], r))
        found.append((x, y, r, np.searchsorted(seen, cuts)))
    joined = [
        np.concatenate([np.stack([v[:-1], v[1:]], axis=1) for v in values]) for values in zip(*found, strict=True)
    ]
    x, y, r, frame = (values[np.argsort(joined[3][:, 1], kind="stable")] for values in joined)
    return _Pieces(x, y, r, frame[:, 1])


def _smooth(u: np.ndarray, xy: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One stroke at even steps of u: u (M,), positions (M, 2), and speeds (M,) in pixels of the canvas a second."""
    if u[-1] == u[0]:
        return u[:1], xy[:1], np.zeros(1)
    moved = np.concatenate([[True], np.diff(u) > 0])  # the first moment at each place
    even = np.linspace(u[0], u[-1], 1 + math.ceil((u[-1] - u[0]) / _STEP))
    step = even[1] - even[0]
    x, y, arrived = (np.interp(even, u[moved], values[moved]) for values in (xy[:, 0], xy[:, 1], times))
    path = np.stack([x, y], axis=1)
    path = _filtered(path, _SMOOTH / step)
    pace = gaussian_filter1d(np.gradient(arrived), 4 / step, mode="nearest") / step  # seconds a pixel
    return even, path, 1 / np.maximum(pace, 1e-4)


def _filtered(path: np.ndarray, deviation: float) -> np.ndarray:
    """A Gaussian along a path (M, 2), which is continued beyond its ends point-symmetrically, so that they stay."""
    pad = min(len(path) - 1, math.ceil(4 * deviation))
    before, after = 2 * path[0] - path[pad:0:-1], 2 * path[-1] - path[-2 : -pad - 2 : -1]
    return gaussian_filter1d(np.concatenate([before, path, after]), deviation, axis=0)[pad : pad + len(path)]


def _place(path: np.ndarray, config: InkConfig, look: Look) -> tuple[np.ndarray, float]:
    """Positions (M, 2) of the canvas in pixels of the frame, and the scale between them. Ink that would leave the frame
    is moved inside; what is too large for it is made smaller."""
    size = np.array([config.width, config.height], float)
    short = size.min()
    turn = np.array([[math.cos(look.tilt), math.sin(look.tilt)], [-math.sin(look.tilt), math.cos(look.tilt)]])
    xy = (path - CANVAS / 2) @ turn
    low, high = xy.min(axis=0), xy.max(axis=0)
    edge = 0.75 * look.width * short + 1
    scale = min(look.zoom * short / CANVAS, *((size - 2 * edge) / np.maximum(high - low, 1e-6)))
    centre = size / 2 + np.array(look.shift) * (0.1 * short + (size - short) / 2)
    centre = np.clip(centre, edge - scale * low, size - edge - scale * high)
    return centre + scale * xy, scale


def _radii(speeds: Sequence[np.ndarray], radius: float) -> list[np.ndarray]:
    """Half the width of the line along each stroke: up to a fifth more where the pen is slower than it mostly is in
    this drawing, up to a fifth less where it is faster."""
    moving = np.concatenate([speed for speed in speeds if len(speed) > 1] or [np.ones(1)])
    usual = np.median(moving)
    return [radius * (1 + 0.2 * np.tanh(np.log(usual / np.maximum(speed, usual / 8)))) for speed in speeds]


# ---------------------------------------------------------------------------------------------- pixels


def _cover(coverage: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> None:
    """Raises `coverage` (H, W) in place to what capsules give each pixel: 1 inside, 0 outside, linear in the distance
    over the pixel at the edge. x, y, radius: (P, 2), at the two ends of each."""
    height, width = coverage.shape
    along_x, along_y = np.diff(x)[..., None], np.diff(y)[..., None]  # (P, 1, 1)
    reach = math.ceil(np.hypot(along_x, along_y).max() / 2 + radius.max() + 0.5)
    offset = np.arange(-reach, reach + 1)
    column = np.floor(x.mean(axis=1)).astype(np.int64)[:, None, None] + offset  # (P, 1, K) around the middle of each
    row = np.floor(y.mean(axis=1)).astype(np.int64)[:, None, None] + offset[:, None]  # (P, K, 1)
    dx, dy = column + 0.5 - x[:, :1, None], row + 0.5 - y[:, :1, None]
    square = np.maximum(along_x * along_x + along_y * along_y, 1e-12)
    place = np.clip((dx * along_x + dy * along_y) / square, 0, 1)  # of the nearest point, from one end to the other
    r = radius[:, :1, None] + place * np.diff(radius)[..., None]
    ink = np.clip(0.5 + r - np.hypot(dx - place * along_x, dy - place * along_y), 0, np.minimum(1, 2 * r))
    inside = (ink > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    np.maximum.at(coverage.reshape(-1), (row * width + column)[inside], ink[inside].astype(np.float32))
