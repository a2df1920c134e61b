"""`shapes`: a procedural world of moving objects, a pure function of (seed, split, index).

Every clip has exact attributes, so that generation and understanding can be scored without a human or a large
model. Clip i does not depend on the batch, the worker or the machine: its random numbers are a counter-based hash
(splitmix64, Steele et al. 2014) of the split's seed and i. Rendering is vectorised over a batch of clips; shapes are
signed distance functions, anti-aliased over one pixel. Captions, questions and their parser live in `grammar.py`.

Not here: reading files (`folder.py`), Lightning (`datamodule.py`).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyramid.data import grammar

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "cyan", "white")
SIZES = ("small", "medium", "large")
MOTIONS = ("left", "right", "up", "down", "bounces", "sways", "orbits", "rests")
BACKGROUNDS = ("gradient", "striped", "checkered", "dotted")
TEXTURES = ("plain", "striped", "dotted")
CAMERAS = ("static", "pan left", "pan right", "tilt up", "tilt down", "zoom in", "zoom out")
SPLITS = ("train", "val", "test", "combinations")

_RGB = torch.tensor(
    [
        [0.90, 0.12, 0.12],
        [0.13, 0.75, 0.20],
        [0.15, 0.30, 0.95],
        [0.95, 0.88, 0.15],
        [0.98, 0.52, 0.08],
        [0.62, 0.18, 0.78],
        [0.15, 0.85, 0.88],
        [0.97, 0.97, 0.97],
    ]
)
_RADIUS = (0.13, 0.19, 0.27)  # of the shorter side


@dataclass(frozen=True)
class ShapesConfig:
    """What the world looks like. `preset` gives the shipped settings by name."""

    height: int = 32
    width: int = 32
    num_frames: int = 9
    fps: float = 8.0
    max_objects: int = 1
    camera: bool = False
    textures: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.height < 8 or self.width < 8:
            raise ValueError(f"ShapesConfig: height and width must be at least 8, got {self.height}x{self.width}")
        if self.num_frames < 1:
            raise ValueError(f"ShapesConfig: num_frames must be at least 1, got {self.num_frames}")
        if not 1 <= self.max_objects <= 3:
            raise ValueError(f"ShapesConfig: max_objects must be 1, 2 or 3, got {self.max_objects}")


def preset(name: str, **changes) -> ShapesConfig:
    """The named preset with `changes` applied: "mini" (32x32, 9 frames, one object), "full" (64x64, 17 frames, one to
    three objects, textures, camera moves) or "single" (the same of one object); any size and length by `changes`."""
    full = ShapesConfig(height=64, width=64, num_frames=17, max_objects=3, camera=True, textures=True)
    presets = {"mini": ShapesConfig(), "single": replace(full, max_objects=1), "full": full}
    if name not in presets:
        raise ValueError(f"shapes.preset: expected one of {sorted(presets)}, got {name!r}")
    return replace(presets[name], **changes)


@dataclass(frozen=True)
class ObjectAttributes:
    shape: str
    colour: str
    size: str
    motion: str
    texture: str = "plain"


@dataclass(frozen=True)
class SceneAttributes:
    """The truth about one clip; objects from back to front. `relation` says where object 0 is relative to object 1
    in the first frame ("left of", "right of", "above", "below"), None for a single object."""

    objects: tuple[ObjectAttributes, ...]
    background: str
    camera: str = "static"
    relation: str | None = None


# ---------------------------------------------------------------------------------------------- random numbers


def _splitmix64(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


class _Draws:
    """Uniform numbers in [0, 1), addressed by (clip, name): the order of the calls does not matter."""

    def __init__(self, seed: int, split: str, indices: Sequence[int]) -> None:
        key = np.uint64(zlib.crc32(f"{split}:{seed}".encode()))
        self.key = _splitmix64(np.asarray(indices, dtype=np.uint64) + (key << np.uint64(32)))

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        bits = _splitmix64(self.key ^ np.uint64(zlib.crc32(name.encode())))
        return low + (high - low) * ((bits >> np.uint64(11)).astype(np.float64) / 2.0**53)

    def integer(self, name: str, count: int) -> np.ndarray:
        return (self.uniform(name) * count).astype(np.int64)


def held_out(shape: int, colour: int, motion: int) -> bool:
    """Whether a (shape, colour, motion) combination belongs to the split "combinations" and to no other: one in
    eight, balanced over each pair of attributes."""
    return (shape + colour + 3 * motion) % 8 == 0


_HELD_OUT = np.array(
    [[[held_out(s, c, m) for m in range(len(MOTIONS))] for c in range(len(COLOURS))] for s in range(len(SHAPES))]
)


# ---------------------------------------------------------------------------------------------- the world


class ShapesDataset(Dataset):
    """Map-style data set of `length` clips of one split.

    Items are dicts: `video` float32 (3, T, H, W) in [-1, 1]; `caption`, the canonical sentence; `paraphrase`, another
    wording of it; `attributes`, a `SceneAttributes`; `index`. `__getitems__` renders a whole batch at once, `describe`
    gives the items without their `video`, and renders nothing.
    """

    def __init__(self, config: ShapesConfig, split: str = "train", length: int = 1 << 20) -> None:
        if split not in SPLITS:
            raise ValueError(f"ShapesDataset: split must be one of {SPLITS}, got {split!r}")
        self.config, self.split, self.length = config, split, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        draws, tables = self._draw(indices)
        videos = _render(draws, tables, self.config)
        return [{"video": video, **item} for video, item in zip(videos, _describe(tables, indices), strict=True)]

    def describe(self, indices: Sequence[int]) -> list[dict]:
        return _describe(self._draw(indices)[1], indices)

    def _draw(self, indices: Sequence[int]) -> tuple[_Draws, dict[str, np.ndarray]]:
        for index in indices:
            if not 0 <= index < self.length:
                raise IndexError(f"ShapesDataset: index must be in [0, {self.length}), got {index}")
        draws = _Draws(self.config.seed, self.split, indices)
        return draws, _draw_tables(draws, self.config, self.split)


def _describe(tables: dict[str, np.ndarray], indices: Sequence[int]) -> list[dict]:
    return [
        {
            "caption": grammar.caption(scene),
            "paraphrase": grammar.paraphrase(scene, index),
            "questions": grammar.questions(scene, index),
            "attributes": scene,
            "index": index,
        }
        for scene, index in zip(_scenes(tables), indices, strict=True)
    ]


def _draw_tables(draws: _Draws, config: ShapesConfig, split: str) -> dict[str, np.ndarray]:
    """Integer attributes: per object (B, K), per clip (B,)."""
    num_objects = 1 + draws.integer("num_objects", config.max_objects)
    tables: dict[str, list] = {name: [] for name in ("shape", "colour", "size", "motion", "texture")}
    allowed = np.argwhere(_HELD_OUT if split == "combinations" else ~_HELD_OUT)
    for k in range(config.max_objects):
        combination = allowed[draws.integer(f"combination{k}", len(allowed))]
        tables["shape"].append(combination[:, 0])
        tables["colour"].append(combination[:, 1])
        tables["motion"].append(combination[:, 2])
        tables["size"].append(draws.integer(f"size{k}", len(SIZES)))
        tables["texture"].append(draws.integer(f"texture{k}", len(TEXTURES)) * config.textures)
    out = {name: np.stack(rows, axis=1) for name, rows in tables.items()}
    for k in range(1, config.max_objects):  # objects of one clip differ in colour, so that a question names one
        for _ in COLOURS:
            colour = out["colour"][:, k]
            clash = (out["colour"][:, :k] == colour[:, None]).any(axis=1)
            clash |= _HELD_OUT[out["shape"][:, k], colour, out["motion"][:, k]] != (split == "combinations")
            out["colour"][:, k] = (colour + clash) % len(COLOURS)
    if config.max_objects > 1:  # several objects share the room: smaller ones, placed side by side
        out["size"] = np.where(num_objects[:, None] > 1, np.minimum(out["size"], 1), out["size"])
    out["num_objects"] = num_objects
    out["background"] = draws.integer("background", len(BACKGROUNDS))
    out["camera"] = draws.integer("camera", len(CAMERAS)) * config.camera
    out["relation"] = draws.integer("relation", 4)
    return out


_RELATIONS = ("left of", "right of", "above", "below")


def _scenes(tables: dict[str, np.ndarray]) -> list[SceneAttributes]:
    scenes = []
    for row in range(len(tables["background"])):
        objects = tuple(
            ObjectAttributes(
                SHAPES[tables["shape"][row, k]],
                COLOURS[tables["colour"][row, k]],
                SIZES[tables["size"][row, k]],
                MOTIONS[tables["motion"][row, k]],
                TEXTURES[tables["texture"][row, k]],
            )
            for k in range(tables["num_objects"][row])
        )
        relation = _RELATIONS[tables["relation"][row]] if len(objects) > 1 else None
        scenes.append(
            SceneAttributes(objects, BACKGROUNDS[tables["background"][row]], CAMERAS[tables["camera"][row]], relation)
        )
    return scenes


def _paths(draws: _Draws, tables: dict[str, np.ndarray], config: ShapesConfig, k: int) -> tuple[Tensor, Tensor]:
    """Centres (B, T, 2) as (x, y) and radii (B,) of object k, in pixels: the whole path stays inside its room."""
    height, width, frames = config.height, config.width, config.num_frames
    short = min(height, width)
    radius = np.array(_RADIUS)[tables["size"][:, k]] * short * draws.uniform(f"radius{k}", 0.94, 1.06)
    several = tables["num_objects"] > 1
    reach = draws.uniform(f"reach{k}", 0.26, 0.42) * short * np.where(several, 0.5, 1.0)

    time = np.linspace(0.0, 1.0, frames)[None] if frames > 1 else np.zeros((1, 1))
    phase = 2 * np.pi * (time + draws.uniform(f"phase{k}")[:, None])
    zero = np.zeros_like(time)
    wave = np.sin(2 * np.pi * time) / 2
    dx = np.select(
        [tables["motion"][:, k, None] == m for m in range(8)],
        [-time, time, zero, zero, zero, wave, np.cos(phase) / 2, zero],
    )
    dy = np.select(
        [tables["motion"][:, k, None] == m for m in range(8)],
        [zero, zero, -time, time, -np.abs(np.sin(2 * np.pi * time)), zero, np.sin(phase) / 2, zero],
    )
    offset = np.stack([dx, dy], axis=-1) * reach[:, None, None]

    # The room of the object: the frame, or with several objects the cell that the relation gives it.
    low = np.zeros((len(radius), 2))
    high = np.broadcast_to(np.array([width, height], float), low.shape).copy()
    axis = (tables["relation"] >= 2).astype(int)  # 0: along x, 1: along y
    first = np.isin(tables["relation"], (0, 2))  # object 0 has the smaller coordinate
    count = np.maximum(tables["num_objects"], 1)
    order = {0: np.where(first, 0, count - 1), 1: np.where(first, count - 1, 0), 2: np.ones_like(count)}[k]
    rows = np.arange(len(radius))
    side = high[rows, axis] / count
    low[rows, axis] = np.where(several, order * side, low[rows, axis])
    high[rows, axis] = np.where(several, (order + 1) * side, high[rows, axis])

    margin = np.minimum(0.9 * radius, 0.42 * (high - low).min(axis=1))[:, None]
    span_low, span_high = offset.min(axis=1), offset.max(axis=1)
    room = np.maximum(high - low - 2 * margin, 1e-6)
    shrink = np.minimum(1.0, room / np.maximum(span_high - span_low, 1e-6)).min(axis=1)
    offset *= shrink[:, None, None]
    span_low, span_high = offset.min(axis=1), offset.max(axis=1)
    pick = np.stack([draws.uniform(f"x{k}"), draws.uniform(f"y{k}")], axis=-1)
    start_low, start_high = low + margin - span_low, high - margin - span_high
    centre = start_low + pick * np.maximum(start_high - start_low, 0.0)
    return torch.from_numpy(centre[:, None] + offset).float(), torch.from_numpy(radius).float()


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.85


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    y = y - 0.15
    return torch.maximum(0.866 * x.abs() - 0.5 * y, y) - 0.6


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five tips of radius 1.1, valleys of radius 0.47: the line from the nearest tip to the nearest valley."""
    tip = (1.1, 0.0)
    valley = (0.47 * math.cos(math.pi / 5), 0.47 * math.sin(math.pi / 5))
    along = (valley[0] - tip[0], valley[1] - tip[1])
    length = math.hypot(*along)
    sector = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + sector / 2, sector) - sector / 2  # from the nearest tip
    r = torch.hypot(x, y)
    return (along[1] * (r * angle.cos() - tip[0]) - along[0] * (r * angle.sin().abs() - tip[1])) / length


def _cross(x: Tensor, y: Tensor) -> Tensor:
    ax, ay = x.abs(), y.abs()
    return torch.maximum(torch.minimum(ax, ay) - 0.34, torch.maximum(ax, ay) - 1.0)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.75).abs() - 0.25


_DISTANCES = (_circle, _square, _triangle, _star, _cross, _ring)


def _signed_distance(x: Tensor, y: Tensor, shape: Tensor) -> Tensor:
    """Signed distance, negative inside, to the shapes of circumradius about 1 centred at 0; x, y: (B, T, H, W), y down;
    shape (B,) indexes SHAPES."""
    out = torch.empty_like(x)
    for index, distance in enumerate(_DISTANCES):
        rows = shape == index
        if rows.any():
            out[rows] = distance(x[rows], y[rows])
    return out


def _pattern(kind: Tensor, x: Tensor, y: Tensor, period: Tensor, angle: Tensor) -> Tensor:
    """Mixing weight in [0, 1] of the second tone: gradient, stripes, checks or dots over coordinates in pixels.
    x, y (B, T, H, W); kind, period, angle (B,)."""
    period, angle = period[:, None, None, None], angle[:, None, None, None]
    u = x * angle.cos() + y * angle.sin()
    v = -x * angle.sin() + y * angle.cos()
    size = max(x.shape[-1], x.shape[-2])
    out = torch.empty_like(u)
    for index in range(len(BACKGROUNDS)):
        rows = kind == index
        if not rows.any():
            continue
        if index == 0:
            out[rows] = (u[rows] / size).clamp(0, 1)
            continue
        wave = torch.sin(2 * torch.pi * u[rows] / period[rows])
        if index > 1:
            wave = wave * torch.sin(2 * torch.pi * v[rows] / period[rows])
        if index == 3:
            wave = wave - 0.35
        out[rows] = (wave * (period[rows] / 4)).clamp(-0.5, 0.5) + 0.5  # about one pixel of transition
    return out


def _render(draws: _Draws, tables: dict[str, np.ndarray], config: ShapesConfig) -> Tensor:
    """Video (B, 3, T, H, W) float32 in [-1, 1]."""
    height, width, frames = config.height, config.width, config.num_frames
    short = min(height, width)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).float()

    # World coordinates of every pixel of every frame: the camera pans by a fifth of the frame or zooms by a quarter.
    time = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)
    camera = torch.from_numpy(tables["camera"])
    pan_x = 0.2 * width * ((camera == 2).float() - (camera == 1).float())
    pan_y = 0.2 * height * ((camera == 4).float() - (camera == 3).float())
    zoom = 1 + 0.25 * ((camera == 6).float() - (camera == 5).float())[:, None] * time  # (B, T), > 1: wider view
    zoom = zoom[:, :, None, None]
    xs = torch.arange(width) + 0.5
    ys = torch.arange(height) + 0.5
    x = (xs - width / 2)[None, None, None, :] * zoom + width / 2 + (pan_x[:, None] * time)[:, :, None, None]
    y = (ys - height / 2)[None, None, :, None] * zoom + height / 2 + (pan_y[:, None] * time)[:, :, None, None]
    x, y = torch.broadcast_tensors(x, y)
    if not config.camera:  # then every frame has the same background
        x, y = x[:, :1], y[:, :1]

    base = tensor(np.stack([draws.uniform(f"base{c}", 0.12, 0.42) for c in "rgb"], axis=-1))
    base = 0.6 * base + 0.4 * base.mean(dim=1, keepdim=True)  # muted, so that objects stand out
    contrast = tensor(draws.uniform("contrast", 0.06, 0.12))[:, None]
    contrast = torch.where(torch.from_numpy(tables["background"] == 0)[:, None], contrast * 1.6, contrast)
    tint = tensor(np.stack([draws.uniform(f"tint{c}", 0.6, 1.4) for c in "rgb"], axis=-1))
    second = base + contrast * tint
    quarter_turns = tensor(draws.integer("angle", 4)) * (torch.pi / 4)
    textured = torch.from_numpy(tables["background"] != 0)[:, None, None, None]
    mix = _pattern(
        torch.from_numpy(tables["background"]),
        x + tensor(draws.uniform("phase_x", 0, 16))[:, None, None, None] * textured,
        y,
        tensor(draws.uniform("period", 0.25, 0.42)) * short,
        quarter_turns,
    )[:, None]
    video = base[:, :, None, None, None] * (1 - mix) + second[:, :, None, None, None] * mix

    for k in range(config.max_objects):
        centre, radius = _paths(draws, tables, config, k)
        turn = tensor(draws.uniform(f"turn{k}", -0.2, 0.2))[:, None, None, None]
        dx = (x - centre[:, :, 0, None, None]) / radius[:, None, None, None]
        dy = (y - centre[:, :, 1, None, None]) / radius[:, None, None, None]
        u, v = dx * turn.cos() + dy * turn.sin(), dy * turn.cos() - dx * turn.sin()
        distance = _signed_distance(u, v, torch.from_numpy(tables["shape"][:, k])) * radius[:, None, None, None]
        alpha = (0.5 - distance / zoom).clamp(0, 1)
        alpha = alpha * torch.from_numpy(k < tables["num_objects"])[:, None, None, None]
        rgb = _RGB[torch.from_numpy(tables["colour"][:, k])]
        rgb = rgb * tensor(draws.uniform(f"shade{k}", 0.9, 1.0))[:, None]
        paint = rgb[:, :, None, None, None].expand(-1, -1, *alpha.shape[1:])
        if config.textures:
            texture = torch.from_numpy(tables["texture"][:, k])
            kind = torch.where(texture == 2, 3, 1)
            grain = _pattern(kind, u, v, torch.full_like(radius, 0.6), torch.zeros_like(radius))[:, None]
            grain = grain * (texture > 0)[:, None, None, None, None]
            paint = paint * (1 - 0.45 * grain)
        video = torch.lerp(video, paint, alpha[:, None])
    return (video * 2 - 1).clamp(-1, 1)
