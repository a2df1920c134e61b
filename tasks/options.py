"""The flags that verbs share, spelled and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MAX_SEED = 2**32 - 1  # the most that all generators take

Inputs = Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, folders or globs.", show_default=False)]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A shipped model, a folder or a hub id.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where to write.")]
Figures = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder for the figures as .txt, .json and .png.", show_default=False),
]
OneShot = Annotated[
    Path | None,
    typer.Option("--one-shot", help="all_runs.zip of Omniglot: its 20-way benchmark.", show_default=False),
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, max=100, help="How many seeds, from --seed on.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="Same seed, same result.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="Of the weights: float32, or bfloat16, less exact and up to twice as fast.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, all else on stderr.")]


def check_dtype(name: str) -> str:
    """Raises ValueError for a type that weights don't have."""
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"--dtype: expected float32 or bfloat16, got {name!r}")
    return name


def check_device(name: str) -> str:
    """Raises ValueError for a device that is none of cpu, cuda and mps, or that torch does not have here."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device: expected cpu, cuda, cuda:N or mps, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device: expected a device of this machine, got {name!r}; it has no such GPU")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"--device: expected a device of this machine, got {name!r}")
    return name


def parse_labels(text: str) -> list[str]:
    """Raises ValueError for fewer than two between the commas, or one twice."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"--labels: expected at least two labels between commas, each once, got {text!r}")
    return names


def parse_details(text: str, num_levels: int) -> list[int]:
    """`all`, `3`, `1,3` or `1-3` -> details. Raises ValueError for what is not from 1 to `num_levels`."""
    if text == "all":
        return list(range(1, num_levels + 1))
    parts = [part.partition("-") for part in text.split(",")]
    try:
        spans = [(int(first), int(last if dash else first)) for first, dash, last in parts]
    except ValueError:
        spans = [(0, 0)]
    if not all(1 <= first <= last <= num_levels for first, last in spans):
        raise ValueError(f"--detail: expected all, or numbers from 1 to {num_levels} such as 2 or 1-3, got {text!r}")
    return sorted({detail for first, last in spans for detail in range(first, last + 1)})


def parse_size(text: str) -> tuple[int, int]:
    """`64` or `64x112` -> (height, width). Raises ValueError for what is no size."""
    sides = text.lower().split("x")
    if not (len(sides) in (1, 2) and all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides)):
        raise ValueError(f"--size: expected a height, or height x width such as 64x112, got {text!r}")
    return int(sides[0]), int(sides[-1])
