"""Peak memory of `pyramid reconstruct` on a clip of ten seconds and one of ten minutes, 1280x720.

    python benchmarks/reconstruct_memory.py --out benchmarks/results/reconstruct_memory.txt

Each clip goes through the command in a process of its own; the peak is that process's resident one, as the kernel
counts it (wait4). The pictures are plain, so that making them takes no time; memory doesn't depend on what they show.
Ends with 1 where the peaks are more than a tenth apart.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pyramid.data.video import write_video
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig

LIMIT = 1.1


def frames(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """A square that runs over a ramp."""
    ramp = np.broadcast_to(np.linspace(30, 220, width, dtype=np.uint8)[None, :, None], (height, width, 3))
    side = height // 5
    for index in range(count):
        frame = ramp.copy()
        left = 7 * index % (width - side)
        frame[2 * side : 3 * side, left : left + side] = (200, 40, 60)
        yield frame


def reconstruct(clip: Path, out: Path, options: list[str]) -> tuple[float, float]:
    """Peak MiB and seconds of the command."""
    command = [sys.executable, "-m", "tasks.cli", "reconstruct", str(clip), "--out", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"reconstruct_memory: the command failed on {clip}")
    return usage.ru_maxrss / 1024, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fps", type=float, default=8.0, help="frames a second of both clips")
    parser.add_argument("--seconds", type=float, nargs=2, default=(10.0, 600.0))
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--tile", type=int, help="as pyramid reconstruct --tile")
    parser.add_argument("--detail", default="5", help="as pyramid reconstruct --detail")
    parser.add_argument("--model", help="as pyramid reconstruct --model; small: a random one of few channels")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    options = ["--detail", args.detail, *(["--tile", str(args.tile)] if args.tile else [])]
    options += ["--model", args.model] if args.model and args.model != "small" else []
    cpu = platform.processor() or platform.machine()
    model = args.model or "shipped"
    threads = f"{torch.get_num_threads()} threads"
    lines = [f"# {cpu}, {threads}, torch {torch.__version__}; model {model}, {' '.join(options)}"]
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        if args.model == "small":
            small = TokenizerConfig(channels=(8, 16, 32), depths=(1, 1, 1), dim=64, depth=1, latent_dim=32, gelu="erf")
            PyramidTokenizer(small).save_pretrained(Path(folder) / "small")
            options += ["--model", str(Path(folder) / "small")]
        for seconds in args.seconds:
            count = round(seconds * args.fps)
            clip = Path(folder) / f"{count}.mp4"
            write_video(clip, frames(count, *args.size), fps=args.fps)
            peak, took = reconstruct(clip, Path(folder) / "out.mp4", options)
            (Path(folder) / "out.mp4").unlink()
            peaks.append(peak)
            lines.append(
                f"{seconds:g} s, {count} frames of {args.size[1]}x{args.size[0]}: peak {peak:.0f} MiB, {took:.0f} s"
            )
            print(lines[-1], flush=True)
    ratio = peaks[1] / peaks[0]
    lines.append(f"ratio {ratio:.3f} (at most {LIMIT})")
    print(lines[-1])
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf8")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
