"""Clips a second of `pyramid caption` on folders of .mp4 files: decoded, tokenized, captioned, compared to what the
model knows. Each model on clips of its own kind, in both types of weights, in turns; run it with nothing beside.

python benchmarks/caption_throughput.py --handwriting FOLDER

FOLDER is what `pyramid data omniglot` makes, `--size 64 --frames 17`; `shapes` and `mini` draw their own clips.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pyramid.data.folder import find_metadata, read_metadata
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.data.video import write_video

FIRST = 400_000  # of the clips of the test split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--handwriting", type=Path, help="its clips too")
    arguments = parser.parse_args()
    print(
        f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads; {arguments.clips} clips"
    )
    print(
        f"{'model':12s} {'clips':16s} {'weights':9s} {'a second, each round':22s} {'with start-up':14s} the very text"
    )
    for model, world in [("shapes", "single"), ("shapes", "full"), ("mini", "mini")]:
        with tempfile.TemporaryDirectory() as folder:
            measure(model, f"shapes:{world}", draw(Path(folder), world, arguments.clips), arguments.rounds)
    if arguments.handwriting:
        with tempfile.TemporaryDirectory() as folder:
            texts = gather(Path(folder), arguments.handwriting, arguments.clips)
            measure("handwriting", "handwriting", texts, arguments.rounds)


def draw(folder: Path, world: str, count: int) -> dict[Path, str]:
    """Clips of the world as files, and what is to be said of each."""
    texts = {}
    for number, item in enumerate(ShapesDataset(preset(world), "test").__getitems__(range(FIRST, FIRST + count))):
        file = folder / f"{number:04d}.mp4"
        write_video(file, item["video"], fps=8)
        texts[file] = item["caption"]
    return texts


def gather(folder: Path, source: Path, count: int) -> dict[Path, str]:
    """Held-out clips of a folder with metadata, spread over it."""
    clips = [clip for file in find_metadata(source) for clip in read_metadata(file) if clip.split in ("val", "test")]
    texts = {}
    for number, clip in enumerate(clips[:: max(1, len(clips) // count)][:count]):
        file = folder / f"{number:04d}{clip.path.suffix}"
        file.symlink_to(clip.path.resolve())
        texts[file] = clip.caption
    return texts


def measure(model: str, clips: str, texts: dict[Path, str], rounds: int) -> None:
    rates: dict[str, list[str]] = {"float32": [], "bfloat16": []}
    for _ in range(rounds):
        for dtype, found in rates.items():
            folder = str(next(iter(texts)).parent)
            command = [sys.executable, "-m", "tasks.cli", "caption", folder, "--model", model, "--dtype", dtype]
            begin = time.monotonic()
            done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
            seconds = time.monotonic() - begin
            found.append(re.search(r"([\d.]+) a second", done.stderr)[1])
            rows = [json.loads(line) for line in done.stdout.splitlines()]
            right = sum(row["caption"] == texts[Path(row["input"])] for row in rows) / len(texts)
            if len(found) == rounds:
                whole = f"{len(texts) / seconds:.1f}"
                print(f"{model:12s} {clips:16s} {dtype:9s} {', '.join(found):20s} {whole:14s} {right:.1%}", flush=True)


if __name__ == "__main__":
    main()
