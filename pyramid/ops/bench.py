"""Times the ops beside what a user would call otherwise: python -m pyramid.ops.bench [--op NAME] [--device cpu|cuda].

Ours and each rival alternate in one process, the median counts, and the figure to quote is the ratio rival / ours.
Extra memory is the growth of the allocator's peak on CUDA; on the CPU it is the growth of the resident peak of a forked
child that makes one call (None where the system can't say).
"""

from __future__ import annotations

import argparse
import math
import os
import select
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyramid.ops import _library
from pyramid.ops.bit_quantize import bit_quantize
from pyramid.ops.nearest_code import nearest_code

Call = Callable[[], Any]
MIN_REPEATS, MAX_REPEATS, MIN_SECONDS = 3, 50, 1.0
CHILD_SECONDS = 120.0  # after which the memory of a call counts as unknown


@dataclass(frozen=True)
class Case:
    op: str
    name: str
    device: str
    # Gives ours and, by name, the rivals: closures over one set of inputs.
    make: Callable[[torch.device], tuple[Call, dict[str, Call]]]


def _nearest(num_rows: int, num_codes: int, dim: int) -> Callable[[torch.device], tuple[Call, dict[str, Call]]]:
    def make(device: torch.device) -> tuple[Call, dict[str, Call]]:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(num_rows, dim, generator=generator).to(device)
        codebook = torch.randn(num_codes, dim, generator=generator).to(device)

        def addmm() -> Tensor:
            return torch.addmm(codebook.square().sum(-1), z, codebook.T, alpha=-2).argmin(-1)

        rivals: dict[str, Call] = {"addmm+argmin": addmm, "cdist": lambda: torch.cdist(z, codebook).argmin(-1)}
        if device.type == "cpu" and (index := _faiss_index(codebook)) is not None:
            rivals["faiss IndexFlatL2"] = lambda: index.search(z.numpy(), 1)
        return lambda: nearest_code(z, codebook), rivals

    return make


def _faiss_index(codebook: Tensor) -> Any:
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    return index


def _lfq(x: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lookup-free quantization as one writes it in PyTorch."""
    codes = x + (torch.where(x > 0, 1.0, -1.0) - x).detach()
    ids = ((x > 0).long() << torch.arange(x.shape[-1], device=x.device)).sum(-1)
    p = torch.sigmoid(4 * x / temperature)
    entropy = torch.nn.functional.binary_cross_entropy(p, p, reduction="none").sum(-1)
    return codes, ids, entropy, (x - codes.detach()).square().mean(-1)


def _bits(num_rows: int, num_bits: int, backward: bool) -> Callable[[torch.device], tuple[Call, dict[str, Call]]]:
    def make(device: torch.device) -> tuple[Call, dict[str, Call]]:
        x = torch.randn(num_rows, num_bits, generator=torch.Generator().manual_seed(0)).to(device)
        x.requires_grad_(backward)

        def step(function: Callable[[Tensor, float], Any]) -> Any:
            codes, _, entropy, commitment = out = function(x, 1.0)
            if backward:
                return torch.autograd.grad(codes.sum() + entropy.sum() + commitment.sum(), x)
            return out

        return lambda: step(bit_quantize), {"torch LFQ": lambda: step(_lfq)}

    return make


def default_cases(device: str = "cpu") -> list[Case]:
    sizes = [(4096, 8192, 8), (4096, 8192, 32), (4096, 1024, 256), (2048, 32768, 384)]
    cases = [Case("nearest_code", "x".join(map(str, size)), device, _nearest(*size)) for size in sizes]
    for num_rows, num_bits in [(65536, 18), (262144, 12)]:
        for backward in (False, True):
            name = f"{num_rows}x{num_bits}{' forward+backward' if backward else ''}"
            cases.append(Case("bit_quantize", name, device, _bits(num_rows, num_bits, backward)))
    return cases


def run(cases: Sequence[Case] | None = None) -> list[dict[str, Any]]:
    """Time every case against each of its rivals.

    Returns:
        Rows of op, case, device, ours_ms, rival, rival_ms, ratio (rival / ours), ours_mib, rival_mib (extra memory at
        the peak, or None).

    Raises:
        RuntimeError: when an op has no compiled form here: the reference is not what is to be timed.
    """
    rows = []
    with _library.backend("native"):
        for case in default_cases() if cases is None else cases:
            device = torch.device(case.device)
            ours, rivals = case.make(device)
            ours()  # opens the library
            ours_mib = _extra_mib(ours, device)
            for rival_name, rival in rivals.items():
                ours_ms, rival_ms = _alternate(ours, rival, device)
                rows.append(
                    {
                        "op": case.op,
                        "case": case.name,
                        "device": case.device,
                        "ours_ms": ours_ms,
                        "rival": rival_name,
                        "rival_ms": rival_ms,
                        "ratio": rival_ms / ours_ms,
                        "ours_mib": ours_mib,
                        "rival_mib": _extra_mib(rival, device),
                    }
                )
    return rows


def _alternate(ours: Call, rival: Call, device: torch.device) -> tuple[float, float]:
    """Median milliseconds of each, called in turn after one call to warm up."""

    def once(call: Call) -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start)

    once(ours), once(rival)
    ours_ms: list[float] = []
    rival_ms: list[float] = []
    while len(ours_ms) < MIN_REPEATS or (
        len(ours_ms) < MAX_REPEATS and sum(ours_ms) + sum(rival_ms) < 1e3 * MIN_SECONDS
    ):
        ours_ms.append(once(ours))
        rival_ms.append(once(rival))
    return statistics.median(ours_ms), statistics.median(rival_ms)


def _extra_mib(call: Call, device: torch.device) -> float | None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return _extra_resident_mib(call)


def _extra_resident_mib(call: Call) -> float | None:
    """A child makes the call on one thread (threads don't survive a fork) and tells how much its resident peak grew."""
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "nan"
        try:
            torch.set_num_threads(1)
            if "faiss" in sys.modules:
                sys.modules["faiss"].omp_set_num_threads(1)
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the peak starts anew at what is resident
            before = _peak_kib()
            call()
            answer = str((_peak_kib() - before) / 1024)
        finally:
            os.write(writer, answer.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        told, _, _ = select.select([file], [], [], CHILD_SECONDS)
        if not told:
            os.kill(child, signal.SIGKILL)
        answer = float(file.read() or "nan")
    os.waitpid(child, 0)
    return None if math.isnan(answer) else answer


def _peak_kib() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pyramid.ops.bench", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--op", help="only this op")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    cases = [case for case in default_cases(args.device) if args.op in (None, case.op)]
    if not cases:
        parser.error(f"--op: expected one of {sorted({case.op for case in default_cases()})}, got {args.op}")
    info = _library.build_info()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {info.get('instruction_set_used')}")
    line = "{:<13} {:<27} {:<7} {:>10} {:<18} {:>10} {:>7} {:>9} {:>9}"
    print(line.format("op", "case", "device", "ours ms", "rival", "rival ms", "ratio", "ours MiB", "rival MiB"))
    for case in cases:
        for row in run([case]):
            mib = ["-" if row[key] is None else f"{row[key]:.1f}" for key in ("ours_mib", "rival_mib")]
            times = [f"{row['ours_ms']:.2f}", row["rival"], f"{row['rival_ms']:.2f}", f"{row['ratio']:.2f}"]
            print(line.format(row["op"], row["case"], row["device"], *times, *mib), flush=True)


if __name__ == "__main__":
    main()
