"""Time and memory of a call beside its rivals.

Ours and a rival alternate in one process, the median counts, and the figure to quote is the ratio rival / ours. What a
rival can prepare once (an index, a mask, compiling) is not timed. Extra memory is the growth of the allocator's peak on
CUDA; on the CPU it is the growth of the process's resident peak over one call, after the heap's free pages went back to
the system (None where there is no Linux to tell).
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pyramid.ops import _library

Call = Callable[[], Any]
Row = dict[str, Any]
KEYS = ("op", "case", "device", "ours_ms", "rival", "rival_ms", "ratio", "ours_mib", "rival_mib")
MIN_REPEATS, MAX_REPEATS = 3, 50
MIN_SECONDS = 4.0  # on CUDA a third of it: times scatter less, and a machine with a GPU may be lent for minutes


@dataclass
class Contest:
    """Closures over one set of inputs. A rival that can't run here is the reason why not."""

    ours: Call
    rivals: dict[str, Call | str]
    note: str = ""  # what a reader has to know of the inputs


@dataclass(frozen=True)
class Case:
    op: str
    name: str
    device: str
    make: Callable[[torch.device], Contest]
    schemas: Sequence[str] = field(default=())  # that must be compiled; none: the one of the op's name


@dataclass(frozen=True)
class Skipped:
    """A rival that gave no time, and why; with rival "", what is to be known of the case."""

    case: Case
    rival: str
    reason: str


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile as one graph of fixed sizes: where it can't, the rival fails in place of running eagerly."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def forward_backward(call: Callable[..., Any], *inputs: torch.Tensor) -> Call:
    """Calls `call(*inputs)`, and gives the gradient by all inputs that require one, of a fixed random weighting of the
    outputs: memory that a layer above would have written, not the one number that a sum's gradient repeats."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    weights: list[torch.Tensor] = []

    def step() -> Any:
        out = call(*inputs)
        outputs = [o for o in ((out,) if isinstance(out, torch.Tensor) else out) if o.requires_grad]
        if not weights:
            generator = torch.Generator().manual_seed(0)
            weights.extend(torch.randn(o.shape, generator=generator).to(o) for o in outputs)
        return torch.autograd.grad(outputs, wanted, weights)

    return step


def run(cases: Sequence[Case]) -> Iterator[Row | Skipped]:
    """Time the compiled ops against their rivals.

    Raises:
        RuntimeError: when an op has no compiled form here: the reference is not what is to be timed.
    """
    for case in cases:
        with _library.backend("native"):
            _check_compiled(case)
            yield from rows_of(case)


def _check_compiled(case: Case) -> None:
    """Raise RuntimeError unless the op is compiled for the case's device."""
    device = torch.device(case.device).type
    if not _library.load() or device not in _library.build_info()["devices"]:  # type: ignore[operator]
        raise RuntimeError(f"bench: expected the extension built for {device}; build with: {_library.BUILD_COMMAND}")
    for name in case.schemas or (case.op,):
        key = {"cpu": "CPU", "cuda": "CUDA"}.get(device, device.upper())
        full = f"pyramid::{name}"
        if full not in torch._C._dispatch_get_all_op_names() or not torch._C._dispatch_has_kernel_for_dispatch_key(
            full, key
        ):
            raise RuntimeError(f"bench: expected a compiled form of {name} for {key}, found none")


def rows_of(case: Case) -> Iterator[Row | Skipped]:
    """Rows of `KEYS`, one a rival: milliseconds, rival / ours, extra MiB at the peak (or None)."""
    torch.compiler.reset()  # torch.compile gives up on a function that it has compiled too often
    device = torch.device(case.device)
    contest = case.make(device)
    if contest.note:
        yield Skipped(case, "", contest.note)
    contest.ours()  # opens the library
    ours_mib = extra_mib(contest.ours, device)
    for name, rival in contest.rivals.items():
        if isinstance(rival, str):
            yield Skipped(case, name, rival)
            continue
        try:
            rival()
        except Exception as error:  # whatever a library raises: its row is missing, and the reader is told
            message = (str(error).strip().splitlines() or [""])[0]
            yield Skipped(case, name, f"{type(error).__name__}: {message}"[:200])
            continue
        ours_ms, rival_ms = alternate(contest.ours, rival, device)
        values = (case.op, case.name, device_name(device), ours_ms, name, rival_ms, rival_ms / ours_ms, ours_mib)
        yield dict(zip(KEYS, (*values, extra_mib(rival, device)), strict=True))


def alternate(ours: Call, rival: Call, device: torch.device) -> tuple[float, float]:
    """Median milliseconds of each, called in turn after one call to warm up."""

    def once(call: Call) -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start)

    once(ours), once(rival)
    enough_ms = 1e3 * (MIN_SECONDS / 3 if device.type == "cuda" else MIN_SECONDS)
    ours_ms: list[float] = []
    rival_ms: list[float] = []
    while len(ours_ms) < MIN_REPEATS or (len(ours_ms) < MAX_REPEATS and sum(ours_ms) + sum(rival_ms) < enough_ms):
        ours_ms.append(once(ours))
        rival_ms.append(once(rival))
    return statistics.median(ours_ms), statistics.median(rival_ms)


def extra_mib(call: Call, device: torch.device) -> float | None:
    """MiB that a call takes at its peak beyond what was there before, its result included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # else the call would be given pages that are resident already
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew at what is resident
    before_kib = _peak_kib()
    call()
    return max(0, _peak_kib() - before_kib) / 1024


def _peak_kib() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def ceilings(device: torch.device) -> str:
    """What this device reaches, measured: the product of two large matrices in each type, and a copy. A roofline."""

    def best(call: Call) -> float:
        times = []
        for _ in range(6):
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        return min(times)

    size = 8192 if device.type == "cuda" else 2048
    rates = []
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        rates.append(f"{name} product {2e-9 * size**3 / best(lambda a=a, b=b: a @ b):.0f} GFLOP/s")
    source, target = (torch.ones(2**26, device=device) for _ in range(2))  # 256 MiB each
    rates.append(f"copy {2e-9 * source.nbytes / best(lambda: target.copy_(source)):.0f} GB/s (read and written)")
    return ", ".join(rates)


def device_name(device: torch.device) -> str:
    """The machine as results name it: the GPU, or processor, threads and instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    isa = _library.build_info().get("instruction_set_used", "no extension")
    return f"{_processor()}, {torch.get_num_threads()} threads, {isa}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
