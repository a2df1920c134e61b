"""The judge of generated scenes: a classifier of pixels for clips of `shapes` at 64x64, one to three objects.

Objects of a clip differ in colour, so it answers for each of the eight colours: whether there is such an object, its
shape, size and motion, and where it is in the first frame; and for the clip: background and camera. Motion is of the
world, not of the frame, so the judge follows each colour through the frames (attention, taught by the true places) and
compares it with what the background does.

It knows nothing of tokens and shares no weight with the models it judges. Its accuracy on rendered clips, and on
reconstructions, is the ceiling for what it says of samples: benchmarks/results/judges.txt.

B clips, T frames, K colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid.data.shapes import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    SceneAttributes,
    ShapesDataset,
    _paths,
    preset,
)
from pyramid.tokenizer import PyramidTokenizer
from tasks.judge import _worn
from tasks.judging import (
    Convolution,
    Learner,
    as_bytes,
    load_weights,
    native_bf16,
    read_config,
    reconstruct,
    save_judge,
)

NUM_FRAMES, SIZE = 17, 64
FORMAT = "pyramid.scene_judge"
OF_OBJECT = {"shape": SHAPES, "size": SIZES, "motion": MOTIONS}
OF_CLIP = {"background": BACKGROUNDS, "camera": CAMERAS}
WINDOW = 7  # places each way of the window around an object, five pixels apart
PRESENT = 0.5  # the probability from which an object counts as found


@dataclass(frozen=True)
class FoundObject:
    """`centre`: (x, y) in the first frame, from 0 (left, top) to 1; `presence`: the probability that it is there."""

    colour: str
    shape: str
    size: str
    motion: str
    centre: tuple[float, float]
    presence: float


@dataclass(frozen=True)
class FoundScene:
    """What the judge sees in a clip; the objects by falling presence."""

    objects: tuple[FoundObject, ...]
    background: str
    camera: str


class SceneJudge(nn.Module):
    """Every second frame down to 16x16 places: as it is, against the clip's middle colour (backgrounds are faint), and
    its differences to the frame before and to the fourth before. For each colour what lies where that colour is, over
    all frames; for the clip what all places say."""

    def __init__(self) -> None:
        super().__init__()
        width, deep, each, self.hidden = 64, 96, 64, 96
        steps = (NUM_FRAMES + 1) // 2
        # As 8x8 with stride 4, which oneDNN computes wrongly for 12 channels in bfloat16 on AMX (torch 2.13).
        self.stem = nn.Sequential(nn.ZeroPad2d(2), nn.PixelUnshuffle(4), nn.Conv2d(12 * 16, width, 2))
        self.fine = nn.Sequential(*(Convolution(width) for _ in range(3)))
        self.down = nn.Conv2d(width, deep, 3, stride=2, padding=1)
        self.coarse = nn.Sequential(*(Convolution(deep) for _ in range(3)))
        self.up = nn.Conv2d(deep, width, 1)
        self.both = Convolution(width)
        self.where = nn.Conv2d(width, 2 * len(COLOURS), 1)  # two looks at each colour: one is its place, one is free
        self.near = nn.Conv2d(width, 16, 1)
        self.form = nn.Linear(16 * WINDOW**2, each)
        self.look = nn.Sequential(nn.Linear(2 * width + 4 + each, each), nn.GELU())
        self.around = nn.Sequential(nn.Linear(deep * 16, each), nn.GELU())
        self.clip = nn.Sequential(nn.Linear(each * steps, 192), nn.GELU(), nn.Linear(192, self.hidden), nn.GELU())
        self.colour = nn.Parameter(torch.zeros(len(COLOURS), self.hidden))
        self.object = nn.Sequential(
            nn.Linear(each * steps + 2 * self.hidden, 256), nn.GELU(), nn.Linear(256, self.hidden), nn.GELU()
        )
        self.presence = nn.Linear(self.hidden, 1)
        self.of_object = nn.ModuleDict({name: nn.Linear(self.hidden, len(v)) for name, v in OF_OBJECT.items()})
        self.of_clip = nn.ModuleDict({name: nn.Linear(self.hidden, len(v)) for name, v in OF_CLIP.items()})
        cells = (torch.arange(SIZE // 4) + 0.5) / (SIZE // 4)
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        self.register_buffer("places", torch.stack([x.flatten(), y.flatten()], dim=1), persistent=False)
        offsets = (torch.arange(WINDOW) - WINDOW // 2) * 5 / SIZE
        y, x = torch.meshgrid(offsets, offsets, indexing="ij")
        self.register_buffer("window", torch.stack([x, y], dim=-1), persistent=False)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """Video (B, 3, 17, 64, 64) in [-1, 1] -> float logits and more: `presence` (B, K); `shape`, `size`, `motion`
        (B, K, values); `background`, `camera` (B, values); `track` (B, 9, K, 2), the places (x, y) in [0, 1] in every
        second frame; `features` (B, 192).

        Raises ValueError for clips of another shape."""
        if video.dim() != 5 or tuple(video.shape[1:]) != (3, NUM_FRAMES, SIZE, SIZE):
            raise ValueError(
                f"SceneJudge: expected clips (B, 3, {NUM_FRAMES}, {SIZE}, {SIZE}), got {tuple(video.shape)}"
            )
        clips = video.shape[0]
        before = torch.cat([video[:, :, :1], video[:, :, 1::2]], dim=2)
        earlier = torch.cat([video[:, :, :1], video[:, :, :1], video[:, :, :-4:2]], dim=2)
        now = video[:, :, ::2]
        middle = video[:, :, ::4, ::4, ::4].flatten(2).median(dim=2).values[..., None, None, None]
        views = [now, torch.tanh(6 * (now - middle)), 4 * (now - before), 2 * (now - earlier)]
        frames = torch.cat(views, dim=1).transpose(1, 2).flatten(0, 1)
        fine = self.fine(F.gelu(self.stem(frames.contiguous(memory_format=torch.channels_last))))
        coarse = self.coarse(F.gelu(self.down(fine)))
        fine = self.both(fine + F.interpolate(self.up(coarse), scale_factor=2.0))

        attention = self.where(fine).float().flatten(2).softmax(dim=-1)  # (B T, 2K, places)
        seen = attention @ fine.float().flatten(2).transpose(1, 2)
        place = attention @ self.places
        windows = 2 * (place[:, : len(COLOURS), None, None].detach() + self.window) - 1  # (B T, K, 7, 7, 2)
        near = F.grid_sample(self.near(fine).float(), windows.flatten(1, 2), align_corners=False)
        form = self.form(near.unflatten(2, (len(COLOURS), WINDOW)).transpose(1, 2).flatten(2))
        per_colour = torch.cat([*torch.cat([seen, place], dim=-1).chunk(2, dim=1), form], dim=-1)
        looks = self.look(per_colour).unflatten(0, (clips, -1)).transpose(1, 2).flatten(2)  # (B, K, T each)
        around = self.around(F.adaptive_avg_pool2d(coarse, 4).flatten(1)).unflatten(0, (clips, -1))
        clip = self.clip(around.flatten(1))
        colours = self.colour.expand(clips, -1, -1)
        objects = self.object(
            torch.cat([looks, clip[:, None].expand(-1, len(COLOURS), -1).to(looks), colours.to(looks)], dim=-1)
        )
        presence = self.presence(objects)[..., 0].float()
        total = (presence.sigmoid()[..., None] * objects.float()).sum(dim=1)
        out = {name: head(objects).float() for name, head in self.of_object.items()}
        out |= {name: head(clip).float() for name, head in self.of_clip.items()}
        track = place[:, : len(COLOURS)].unflatten(0, (clips, -1))
        return out | {"presence": presence, "track": track, "features": torch.cat([total, clip.float()], dim=1)}

    @torch.no_grad()
    def scenes(self, video: Tensor, batch_size: int = 32) -> list[FoundScene]:
        """What each clip of (B, 3, 17, 64, 64) in [-1, 1] shows. Raises ValueError for clips of another shape."""
        return [scene for part in video.split(batch_size) for scene in read_answers(self(part))]

    @torch.no_grad()
    def features(self, video: Tensor, batch_size: int = 32) -> Tensor:
        """What the answers are read from, float32 (B, 192), for `frechet_distance`: the objects, each by its presence,
        and the clip. Raises ValueError for clips of another shape."""
        return torch.cat([self(part)["features"] for part in video.split(batch_size)])

    def save(self, folder: str | Path) -> None:
        save_judge(self, folder, {"format": FORMAT, "num_frames": NUM_FRAMES, "size": SIZE})

    @staticmethod
    def load(folder: str | Path) -> SceneJudge:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError for another format."""
        read_config(folder, FORMAT)
        judge = SceneJudge()
        load_weights(judge, folder)
        return judge


def read_answers(out: dict[str, Tensor]) -> list[FoundScene]:
    """What `SceneJudge.forward` gives, as scenes."""
    presence = out["presence"].sigmoid().tolist()
    centres = out["track"][:, 0].tolist()
    chosen = {name: out[name].argmax(dim=-1).tolist() for name in (*OF_OBJECT, *OF_CLIP)}
    scenes = []
    for row, probabilities in enumerate(presence):
        objects = [
            FoundObject(
                colour=COLOURS[k],
                centre=(centres[row][k][0], centres[row][k][1]),
                presence=probability,
                **{name: values[chosen[name][row][k]] for name, values in OF_OBJECT.items()},
            )
            for k, probability in enumerate(probabilities)
            if probability >= PRESENT
        ]
        objects.sort(key=lambda thing: -thing.presence)
        scenes.append(FoundScene(tuple(objects), *(values[chosen[name][row]] for name, values in OF_CLIP.items())))
    return scenes


# ---------------------------------------------------------------------------------------------- what was asked


def objects_agreement(scene: SceneAttributes, found: FoundScene) -> list[dict[str, bool]]:
    """For each object of `scene`, in its order: whether `found` has one of its colour ("colour"), and whether that one
    has its "shape", "size" and "motion". Objects of one colour, of which the split `combinations` of `full` has some
    (one colour alone is left for each shape and motion), are taken for one."""
    by_colour = {thing.colour: thing for thing in found.objects}
    rows = []
    for asked in scene.objects:
        seen = by_colour.get(asked.colour)
        row = {name: seen is not None and getattr(seen, name) == getattr(asked, name) for name in OF_OBJECT}
        rows.append({"colour": seen is not None} | row)
    return rows


def agreement_with(scene: SceneAttributes, found: FoundScene) -> dict[str, bool]:
    """Whether a clip shows what was asked.

    Args:
        scene: what was asked.
        found: what `SceneJudge.scenes` sees in the clip.

    Returns:
        "shape", "colour", "size" and "motion": right for every object that was asked. "relation", only where one was
        asked: the centres of the first two objects have it in the first frame. "all": all of these. "alone", only
        where one object was asked, and no part of "all": no other object was found.

    Raises:
        ValueError: an unknown relation.
    """
    rows = objects_agreement(scene, found)
    right = {name: all(row[name] for row in rows) for name in ("shape", "colour", "size", "motion")}
    if scene.relation is not None:
        right["relation"] = _has_relation(scene, found)
    right["all"] = all(right.values())
    if len(scene.objects) == 1:
        right["alone"] = [thing.colour for thing in found.objects] == [scene.objects[0].colour]
    return right


def _has_relation(scene: SceneAttributes, found: FoundScene) -> bool:
    signs = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}
    if scene.relation not in signs:
        raise ValueError(f"agreement_with: relation must be one of {sorted(signs)}, got {scene.relation!r}")
    axis, sign = signs[scene.relation]
    centres = {thing.colour: thing.centre for thing in found.objects}
    first, second = (centres.get(thing.colour) for thing in scene.objects[:2])
    return first is not None and second is not None and sign * (second[axis] - first[axis]) > 0


# ---------------------------------------------------------------------------------------------- training


def render(dataset: ShapesDataset, indices: Sequence[int]) -> dict[str, Tensor]:
    """Clips and all that the judge is to say of them: `video` uint8 (B, 3, 17, 64, 64); `shape`, `size`, `motion`
    int64 (B, K), -1 where no object has the colour; `background`, `camera` int64 (B,); `track` (B, 9, K, 2)."""
    config = dataset.config
    draws, tables = dataset._draw(indices)
    items = dataset.__getitems__(indices)
    rows = torch.arange(len(items))
    steps = (config.num_frames + 1) // 2
    out = {name: torch.full((len(items), len(COLOURS)), -1) for name in OF_OBJECT}
    out["track"] = torch.zeros(len(items), steps, len(COLOURS), 2)
    camera = torch.from_numpy(tables["camera"])
    time = torch.linspace(0, 1, config.num_frames)[None, :, None]
    pan = torch.stack([(camera == 2).float() - (camera == 1).float(), (camera == 4).float() - (camera == 3).float()], 1)
    zoom = 1 + 0.25 * ((camera == 6).float() - (camera == 5).float())[:, None, None] * time
    for k in range(config.max_objects):  # the later object is in front, and no two have a colour in common
        there = torch.from_numpy(tables["num_objects"] > k)
        colour = torch.from_numpy(tables["colour"][:, k])[there]
        for name in OF_OBJECT:
            out[name][rows[there], colour] = torch.from_numpy(tables[name][:, k])[there]
        world = _paths(draws, tables, config, k)[0] / SIZE
        places = ((world - 0.5 - 0.2 * pan[:, None] * time) / zoom + 0.5).clamp(0, 1)
        out["track"][rows[there], :, colour] = places[there, ::2]
    out |= {name: torch.from_numpy(tables[name]) for name in OF_CLIP}
    return out | {"video": as_bytes(torch.stack([item["video"] for item in items]))}


class _Pool:
    """The clips seen last, up to `capacity`; the oldest make room."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.count = capacity, 0
        self.rows: dict[str, Tensor] = {}

    def add(self, batch: dict[str, Tensor]) -> None:
        if not self.rows:
            self.rows = {
                name: torch.empty(self.capacity, *rows.shape[1:], dtype=rows.dtype) for name, rows in batch.items()
            }
        at = (self.count + torch.arange(len(batch["video"]))) % self.capacity
        for name, rows in batch.items():
            self.rows[name][at] = rows
        self.count += len(at)

    def draw(self, count: int) -> dict[str, Tensor]:
        chosen = torch.randint(min(self.count, self.capacity), (count,))
        return {name: rows[chosen] for name, rows in self.rows.items()}


class _World:
    """Training clips in turn: half of them `full`, half `single`, and one batch in eight of held-out combinations."""

    def __init__(self, seed: int) -> None:
        self.sources = [
            [ShapesDataset(preset(name, seed=seed + 1_000_003), split) for name in ("full", "single")]
            for split in ("train", "combinations")
        ]
        self.batches, self.next = 0, 0

    def take(self, count: int) -> dict[str, Tensor]:
        halves = self.sources[self.batches % 8 == 0]
        indices = range(self.next, self.next + count // 2)
        self.batches, self.next = self.batches + 1, self.next + count // 2
        parts = [render(half, indices) for half in halves]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _mirrored(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half of the clips seen in a mirror, where left is right."""
    flip = torch.rand(len(batch["video"])) < 0.5
    out = dict(batch)
    out["video"] = torch.where(flip[:, None, None, None, None], batch["video"].flip(-1), batch["video"])
    for name, names in (("motion", MOTIONS), ("camera", CAMERAS)):
        swapped = torch.tensor([names.index(_mirror(value)) for value in names])
        mirror = torch.where(batch[name] >= 0, swapped[batch[name]], -1)
        out[name] = torch.where(flip.view(-1, *[1] * (mirror.dim() - 1)), mirror, batch[name])
    x, y = batch["track"].unbind(-1)
    out["track"] = torch.stack([torch.where(flip[:, None, None], 1 - x, x), y], dim=-1)
    return out


def _mirror(value: str) -> str:
    sides = {"left": "right", "right": "left"}
    return " ".join(sides.get(word, word) for word in value.split())


def _loss(out: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    there = truth["shape"] >= 0
    terms = [4 * F.binary_cross_entropy_with_logits(out["presence"], there.float())]
    for name in OF_OBJECT:
        terms.append(F.cross_entropy(out[name][there], truth[name][there], label_smoothing=0.02))
    for name in OF_CLIP:
        terms.append(F.cross_entropy(out[name], truth[name], label_smoothing=0.02))
    places = (out["track"] - truth["track"]).abs().mean(dim=(1, 3))  # (B, K)
    return torch.stack([*terms, 4 * places[there].mean()]).sum()


def train_scene_judge(
    out: str | Path,
    tokenizer: PyramidTokenizer,
    *,
    minutes: float = 14.0,
    learning_rate: float = 2e-3,
    num_reconstructed: int = 1200,
    seed: int = 0,
    initial: SceneJudge | None = None,
) -> None:
    """Train on clips of `full` and `single`, of every combination (the held-out ones too: the judge must know them),
    half of them with light noise and blur; a quarter as `tokenizer` reconstructs them at details 5 to 7. From
    `initial` on, where there is one. It is written to `out`."""
    torch.manual_seed(seed)
    world, rendered, reconstructed = _World(seed), _Pool(16_384), _Pool(num_reconstructed)
    with native_bf16():
        for start in range(0, num_reconstructed, 48):
            batch = world.take(min(48, num_reconstructed - start))
            reconstructed.add(batch | {"video": reconstruct(tokenizer, batch["video"], (5, 6, 7))})
    judge = SceneJudge() if initial is None else initial
    learner = Learner(judge, minutes, learning_rate)
    for step in learner.steps():
        fresh = world.take(12)
        rendered.add(fresh)
        parts = [fresh, rendered.draw(12), reconstructed.draw(8)]
        batch = _mirrored({name: torch.cat([part[name] for part in parts]) for name in fresh})
        video = batch["video"] / 127.5 - 1
        video[::2] = _worn(video[::2])
        with native_bf16():
            answers = judge(video)
        loss = _loss(answers, batch)
        learner.learn(loss)
        if step % 50 == 0:
            there = batch["shape"] >= 0
            right = [
                f"{name} {(answers[name].argmax(-1) == batch[name])[there].float().mean():.3f}" for name in OF_OBJECT
            ]
            progress = learner.schedule.progress(step)
            print(f"scene judge: step {step}, {progress:.0%}, loss {loss:.3f}, {', '.join(right)}", flush=True)
            judge.save(out)
    print(f"scene judge: {learner.num_steps} steps of 32 clips, {2 * world.next} rendered")
    judge.save(out)
