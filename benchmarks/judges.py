"""The judges of generated clips: trains them, and prints how far they can be believed.

python benchmarks/judges.py scenes --train 14
python benchmarks/judges.py scenes --train 4 --initial runs/judges/shapes_judge --rate 0.001 --seed 1 --out runs/on
python benchmarks/judges.py writing --strokes strokes_background_small*.zip --folder handwriting --train 8
python benchmarks/judges.py robot --folder clips --train 10

`--folder` of writing is what `pyramid data omniglot` makes of `--strokes`, with `--size 64 --frames 17`; that of robot
has a metadata.jsonl with splits. Without --train the shipped weights are measured; with it, new ones in --out.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from pyramid.data.folder import FolderDataset
from pyramid.data.shapes import SceneAttributes, ShapesDataset, preset
from tasks.clip_features import ClipFeatures, read_whole, retrieval, train_clip_features
from tasks.frechet import frechet_distance, weights_hash
from tasks.judging import native_bf16, reconstruct
from tasks.models import JUDGES, load_tokenizer
from tasks.scene_judge import FoundScene, SceneJudge, agreement_with, read_answers, train_scene_judge
from tasks.writing_judge import WritingJudge, train_writing_judge

UNREACHED = 1 << 19  # of these indices on no judge was trained; nor of this seed
BATCH = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("judge", choices=("scenes", "writing", "robot"))
    parser.add_argument("--train", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--initial", type=Path, help="of scenes: go on from these weights")
    parser.add_argument("--rate", type=float, default=2e-3, help="of scenes: the learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/judges"), help="what is trained goes to a folder in it")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--strokes", type=Path, nargs="+", default=[])
    parser.add_argument("--clips", type=int, default=500, help="of each kind of scenes, of handwriting")
    arguments = parser.parse_args()
    name = {"scenes": "shapes_judge", "writing": "handwriting_judge", "robot": "robot_features"}[arguments.judge]
    folder = arguments.out / name if arguments.train else JUDGES / name
    print(f"{name}: torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    {"scenes": scenes, "writing": writing, "robot": robot}[arguments.judge](folder, arguments)


# ---------------------------------------------------------------------------------------------- scenes


def scenes(folder: Path, arguments: argparse.Namespace) -> None:
    tokenizer = load_tokenizer("shapes")
    if arguments.train:
        initial = SceneJudge.load(arguments.initial) if arguments.initial else None
        train_scene_judge(
            folder,
            tokenizer,
            minutes=arguments.train,
            learning_rate=arguments.rate,
            seed=arguments.seed,
            initial=initial,
        )
    judge = SceneJudge.load(folder)
    print(f"weights {weights_hash(folder)}; shares of {arguments.clips} clips of each kind")
    for world, num_objects in (("single", 1), ("full", 2)):
        for split in ("test", "combinations"):
            data = ShapesDataset(preset(world), split)
            items = [
                item
                for item in data.describe(range(UNREACHED, UNREACHED + 4 * arguments.clips))
                if len(item["attributes"].objects) == num_objects
                and len({thing.colour for thing in item["attributes"].objects}) == num_objects  # see objects_agreement
            ][: arguments.clips]
            asked = [item["attributes"] for item in items]
            found: dict[str, list[FoundScene]] = {}
            features: dict[str, list[torch.Tensor]] = {}
            for start in range(0, len(items), BATCH):
                batch = data.__getitems__([item["index"] for item in items[start : start + BATCH]])
                video = torch.stack([item["video"] for item in batch])
                seen = {"as rendered": video}
                with native_bf16():
                    tokens = tokenizer.encode(video)
                    for detail in range(tokenizer.num_levels - 3, tokenizer.num_levels + 1):
                        seen[f"detail {detail}"] = tokenizer.decode(tokens, detail).float()
                for kind, clips in seen.items():
                    with torch.no_grad(), native_bf16():
                        answers = judge(clips)
                    found.setdefault(kind, []).extend(read_answers(answers))
                    features.setdefault(kind, []).append(answers["features"])
            real = torch.cat(features["as rendered"])
            for kind, rows in found.items():
                distance = frechet_distance(real, torch.cat(features[kind]))
                print(
                    f"{num_objects} objects, {split}, {kind}: {_shares(asked, rows)}, Fréchet {distance:.2f}",
                    flush=True,
                )


def _shares(asked: Sequence[SceneAttributes], found: Sequence[FoundScene]) -> str:
    rows = [agreement_with(scene, seen) for scene, seen in zip(asked, found, strict=True)]
    for row, scene, seen in zip(rows, asked, found, strict=True):
        row["shape+colour+motion"] = row["shape"] and row["colour"] and row["motion"]
        row["background"] = seen.background == scene.background
        row["camera"] = seen.camera == scene.camera
    return ", ".join(f"{name} {sum(row[name] for row in rows) / len(rows):.3f}" for name in rows[0])


# ---------------------------------------------------------------------------------------------- handwriting


def writing(folder: Path, arguments: argparse.Namespace) -> None:
    tokenizer = load_tokenizer("handwriting")
    if arguments.train:
        train_writing_judge(folder, arguments.strokes, tokenizer, minutes=arguments.train, seed=arguments.seed)
    judge = WritingJudge.load(folder)
    data = FolderDataset(arguments.folder, tokenizer.config.num_frames, tokenizer.config.size, split="val")
    chosen = range(0, len(data), max(1, len(data) // arguments.clips))
    print(f"weights {weights_hash(folder)}; shares of {len(chosen)} clips by drawers never seen")
    features: dict[str, list[torch.Tensor]] = {}
    right: dict[str, list[tuple[bool, bool]]] = {}
    for start in range(0, len(chosen), BATCH):
        items = [data[index] for index in chosen[start : start + BATCH]]
        video = torch.stack([item["video"] for item in items])
        seen = {"as rendered": video}
        with native_bf16():
            tokens = tokenizer.encode(video)
            for detail in (tokenizer.num_levels - 2, tokenizer.num_levels):
                seen[f"detail {detail}"] = tokenizer.decode(tokens, detail).float()
        for kind, clips in seen.items():
            features.setdefault(kind, []).append(judge.features(clips))
            pairs = [(name, str(item["label"])) for name, item in zip(judge.characters(clips), items, strict=True)]
            right.setdefault(kind, []).extend((a == b, a.split("/")[0] == b.split("/")[0]) for a, b in pairs)
    real = torch.cat(features["as rendered"])
    for kind, rows in right.items():
        character, alphabet = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        distance = frechet_distance(real, torch.cat(features[kind]))
        print(f"{kind}: character {character:.3f}, alphabet {alphabet:.3f}, Fréchet {distance:.2f}")


# ---------------------------------------------------------------------------------------------- robot clips


def robot(folder: Path, arguments: argparse.Namespace) -> None:
    paths = {
        split: [clip.path for clip in FolderDataset(arguments.folder, 17, (64, 112), split=split).clips]
        for split in ("train", "val")
    }
    if arguments.train:
        train_clip_features(folder, read_whole(paths["train"]), minutes=arguments.train, seed=arguments.seed)
    network = ClipFeatures.load(folder)
    held_out = read_whole(paths["val"])
    figures = ", ".join(f"{name} {share:.3f}" for name, share in retrieval(network, held_out).items())
    print(
        f"weights {weights_hash(folder)}; of {len(held_out)} held-out clips, chance {1 / len(held_out):.3f}: {figures}"
    )
    video = torch.stack([clip[:, :17] for clip in held_out])
    real = network.features(video / 127.5 - 1)
    tokenizer = load_tokenizer("robot")
    for detail in (tokenizer.num_levels - 2, tokenizer.num_levels):
        with native_bf16():
            again = reconstruct(tokenizer, video, [detail]) / 127.5 - 1
        print(f"detail {detail}: Fréchet {frechet_distance(real, network.features(again)):.2f}")
    frozen = video[:, :, :1].expand_as(video) / 127.5 - 1
    print(f"first frame repeated: Fréchet {frechet_distance(real, network.features(frozen)):.2f}")


if __name__ == "__main__":
    main()
