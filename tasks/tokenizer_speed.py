"""How fast a tokenizer is, what memory it takes, and how both grow with a clip's length and size.

Clips are noise and weights may be random: neither changes the time. A clip goes through as a stream, chunk by chunk,
as `reconstruct` sends it. Beside ours stand the figures that other tokenizers of the same stride gave when they were
measured, by the same protocol, on the machine that the row names; they are recorded, not measured again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pyramid.levels import chunk_lengths
from pyramid.ops.bench.measure import device_name, extra_mib

if TYPE_CHECKING:
    from pyramid.tokenizer import PyramidTokenizer
    from pyramid.tokens import TokenPyramid

KEYS = ("tokenizer", "verb", "case", "device", "frames_per_s", "ms", "extra_mib", "source")
MIN_REPEATS, MAX_REPEATS, MIN_SECONDS = 3, 20, 3.0
_OTHERS_DEVICE = "2 cores of an AMD EPYC (AVX2), 2026-11-22, random weights"
_OTHERS = (  # ms of 17 frames of 128x128; field survey of this project
    ("Cosmos DV4x8x8 (112 M)", "encode", 1260.0),
    ("Cosmos DV4x8x8 (112 M)", "decode", 3420.0),
    ("VidTok FSQ causal 4x8x8 (157 M)", "encode", 24100.0),
    ("VidTok FSQ causal 4x8x8 (157 M)", "decode", 43300.0),
)


@dataclass(frozen=True)
class Case:
    frames: int
    height: int
    width: int
    streams: int = 1
    tile: int | None = None

    @property
    def name(self) -> str:
        name = f"{self.frames}x{self.height}x{self.width}"
        name += f", {self.streams} streams at once" if self.streams > 1 else ""
        return name + (f", tiles of {self.tile}" if self.tile else "")


_COMPARED = Case(17, 128, 128)
# Then longer, smaller and larger clips, many at once, and tiles.
CASES = (
    _COMPARED,
    Case(65, 128, 128),
    Case(257, 128, 128),
    Case(17, 64, 64),
    Case(17, 256, 256),
    Case(17, 512, 512),
    Case(17, 128, 128, streams=8),
    Case(9, 720, 1280),
    Case(9, 720, 1280, tile=256),
)


def rows(tokenizer: PyramidTokenizer, name: str) -> Iterator[dict[str, Any]]:
    """Rows of `KEYS`: ours for every case, and the recorded ones."""
    device = tokenizer.device
    for case in CASES:
        for verb, call in _calls(tokenizer, case).items():
            ms = _median_ms(call, device)
            rate = 1000 * case.streams * case.frames / ms
            values = (name, verb, case.name, device_name(device), rate, ms, extra_mib(call, device), "measured")
            yield dict(zip(KEYS, values, strict=True))
        for other, verb, ms in _OTHERS if case == _COMPARED else ():
            values = (other, verb, case.name, _OTHERS_DEVICE, 1000 * case.frames / ms, ms, None, "recorded")
            yield dict(zip(KEYS, values, strict=True))


def _calls(tokenizer: PyramidTokenizer, case: Case) -> dict[str, Callable[[], None]]:
    shape = (case.streams, 3, case.frames, case.height, case.width)
    video = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(tokenizer.device)
    tokens = list(_encode(tokenizer, video, case.tile))
    return {
        "encode": lambda: _drain(_encode(tokenizer, video, case.tile)),
        "decode": lambda: _drain(tokenizer.decode_stream(iter(tokens), tile=case.tile)),
    }


def _encode(tokenizer: PyramidTokenizer, video: torch.Tensor, tile: int | None) -> Iterator[TokenPyramid]:
    lengths = chunk_lengths(video.shape[2], tokenizer.config.chunk_frames)
    return tokenizer.encode_stream(video.split(lengths, dim=2), tile=tile)


def line(row: dict[str, Any]) -> str:
    memory = "-" if row["extra_mib"] is None else f"{row['extra_mib']:.0f} MiB"
    said = f"{row['tokenizer']:<32} {row['verb']} {row['case']:<34} {row['frames_per_s']:>7.1f} frames/s "
    return said + f"{row['ms']:>9.1f} ms {memory:>9}  {row['source']}"


def header(tokenizer: PyramidTokenizer, name: str) -> list[str]:
    c = tokenizer.config
    millions = sum(parameter.numel() for parameter in tokenizer.parameters()) / 1e6
    return [
        f"# {name}: {millions:.1f} M parameters, stride {c.time_stride}x{c.stride}x{c.stride}, {tokenizer.dtype}; "
        f"{device_name(tokenizer.device)}; torch {torch.__version__}",
        f"# medians; extra MiB: beyond the weights, at the peak of one call; recorded: {_OTHERS_DEVICE}",
    ]


def random_tokenizer(model: Any, device: str) -> PyramidTokenizer:
    """Of this config, with random weights."""
    from pyramid.tokenizer import PyramidTokenizer

    torch.manual_seed(0)
    return PyramidTokenizer(model).to(device).eval()


def _drain(items: Iterator[Any]) -> None:
    for _ in items:
        pass


def _median_ms(call: Callable[[], None], device: torch.device) -> float:
    call()
    times: list[float] = []
    while len(times) < MIN_REPEATS or (len(times) < MAX_REPEATS and sum(times) < 1000 * MIN_SECONDS):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)
