"""Builds the CUDA kernels for the host, with the emulator in the place of CUDA, and opens them.

    ops = emulated_ops()          torch.ops.pyramid_emulated: every op of csrc/ops/*_cuda.cpp, on CPU tensors
    self_test = self_test()       ctypes library of self_test.cu

Objects are kept in a folder named by a digest of their sources, so a second run builds nothing.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ["-std=c++20", "-O1", "-g0", "-fPIC", "-fvisibility=hidden", "-w", "-DUSE_CUDA", "-DPYRAMID_EMULATE"]
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")


def _build(name: str, commands: dict[Path, list[str]], libraries: list[str]) -> Path:
    """Compile each source with its flags, link, give the shared library's path."""
    cxx = compiler()
    assert cxx, "library: ask compiler() first"
    headers = sorted([*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh"), *HERE.rglob("*.h")])
    common = hashlib.sha256(b"".join(p.read_bytes() for p in headers))
    common.update(f"{cxx} {FLAGS} {torch.__version__}".encode())
    folder = Path(tempfile.gettempdir()) / f"pyramid_cuda_emulator_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)

    def compile(source: Path) -> Path:
        digest = common.copy()
        digest.update(source.read_bytes())
        target = folder / f"{source.parent.name}_{source.stem}_{digest.hexdigest()[:16]}.o"
        if not target.exists():
            partial = target.with_suffix(f".{os.getpid()}.o")
            command = [cxx, *FLAGS, *commands[source], "-x", "c++", "-c", str(source), "-o", str(partial)]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr[:4000]}"
            partial.replace(target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile, commands))
    digest = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
    library = folder / f"{name}_{digest}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}.so")
        command = [cxx, "-shared", *map(str, objects), "-o", str(partial), *libraries]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr[:4000]}"
        partial.replace(library)
    return library


def kernels_of(stem: str) -> list[Path]:
    return sorted((CSRC / "kernels").glob(f"{stem}*_cuda.cu"))


def emulated_stems() -> list[str]:
    """Names of the ops whose kernels are written with kernels/cuda_device.cuh: g++ can't read <<<>>>."""
    stems = [p.stem.removesuffix("_cuda") for p in sorted((CSRC / "ops").glob("*_cuda.cpp"))]
    return [s for s in stems if not any("<<<" in p.read_text(encoding="utf8") for p in kernels_of(s))]


INCLUDE = [f"-I{HERE}", f"-I{CSRC}"]


@functools.cache
def self_test() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_build("self_test", {HERE / "self_test.cu": INCLUDE}, [])))
    library.emulated_message.restype = ctypes.c_char_p
    return library


@functools.cache
def emulated_ops():
    root = Path(torch.__file__).parent
    with_torch = [*INCLUDE, "-isystem", str(root / "include"), TORCH_TARGET, "-include", str(HERE / "register.h")]
    commands = {source: INCLUDE for stem in emulated_stems() for source in kernels_of(stem)}
    commands |= {CSRC / "ops" / f"{stem}_cuda.cpp": with_torch for stem in emulated_stems()}
    commands[CSRC / "schema.cpp"] = with_torch
    torch.ops.load_library(str(_build("ops", commands, [f"-L{root / 'lib'}", "-ltorch_cpu"])))
    return torch.ops.pyramid_emulated
