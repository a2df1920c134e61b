"""Builds the extension: `pyramid._C` (CPU, always) and `pyramid._C_cuda` (CUDA, see PYRAMID_CUDA below).

    pip install --no-build-isolation -e .        or        python setup.py build_ext --inplace

PYRAMID_CUDA=auto (default): CUDA kernels are built when torch has CUDA and nvcc is found; 1: built, whatever torch says
(they compile and link on a machine without a GPU); 0: never. The metadata is in pyproject.toml.

The sources use torch's stable ABI only, so nothing here needs torch's own extension builder: each object is one line of
a ninja file. A kernel file `csrc/kernels/*_cpu.cpp` is compiled once for every instruction set (see csrc/README.md).
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGES = ["pyramid", "pyramid.data", "pyramid.nn", "pyramid.ops", "pyramid.quantize", "lm", "tasks"]
PACKAGE_DATA = {name: ["py.typed", "configs/*.yaml", "assets/*"] for name in ("pyramid", "lm")}
PACKAGE_DATA["tasks"] = ["py.typed", "default_model/**"]

CUDA_LIBRARY = "pyramid._C_cuda"  # a plain library, no Python module: torch.ops.load_library opens it
# One build serves every torch from this version on.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
CXX_FLAGS = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wno-psabi"]
INSTRUCTION_SETS = {"base": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
    INSTRUCTION_SETS["avx512"] += INSTRUCTION_SETS["avx2"]
    INSTRUCTION_SETS["avx512"] += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # gcc 12: its own header
CUDA_ARCHITECTURES = ["sm_80", "sm_90", "compute_90"]  # the last is PTX, for what comes after
NVCC_FLAGS = [
    "-std=c++20", "-O3", "-DUSE_CUDA", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]", "--threads=2",
]  # fmt: skip


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [f"{home}/bin/nvcc" if home else None, shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


def find_torch():
    try:
        import torch
    except ImportError:
        sys.exit("setup.py: building the extension needs torch >= 2.10: install it first, then --no-build-isolation")
    return torch


@functools.cache
def wants_cuda() -> bool:
    """Decide by PYRAMID_CUDA, torch and nvcc, and say so in one line."""
    choice = os.environ.get("PYRAMID_CUDA", "auto")
    nvcc = find_nvcc()
    if choice == "0":
        build, why = False, "PYRAMID_CUDA=0"
    elif choice == "1":
        if nvcc is None:
            sys.exit("setup.py: PYRAMID_CUDA=1 needs nvcc, found none in CUDA_HOME, PATH or /usr/local/cuda")
        build, why = True, f"PYRAMID_CUDA=1, {nvcc}"
    elif choice == "auto":
        torch_cuda = find_torch().version.cuda
        build = bool(torch_cuda and nvcc)
        why = f"torch has CUDA {torch_cuda or 'no'}, nvcc is {nvcc or 'missing'}"
    else:
        sys.exit(f"setup.py: PYRAMID_CUDA must be auto, 0 or 1, got {choice!r}")
    print(f"pyramid: CPU kernels for {', '.join(INSTRUCTION_SETS)}; CUDA kernels: {'yes' if build else 'no'} ({why})")
    return build


def name_of(source: Path) -> str:
    return f"{source.parent.name}_{source.stem}"  # the same stem stands in kernels/ and in ops/


def escape(text: str) -> str:
    return text.replace("$", "$$").replace(":", "$:").replace(" ", "$ ")


class NinjaFile:
    """The lines of a build.ninja: one rule, one edge per object and per library."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lines = [
            "ninja_required_version = 1.5",
            "rule run\n  command = $cmd\n  depfile = $dep\n  deps = gcc\n  description = $what",
            "rule link\n  command = $cmd\n  description = $what",
        ]

    def compile(self, source: Path, name: str, command: list[str]) -> str:
        target = self.folder / f"{name}.o"
        cmd = subprocess.list2cmdline([*command, "-MMD", "-MF", f"{target}.d", "-c", str(source), "-o", str(target)])
        self.lines.append(f"build {escape(str(target))}: run {escape(str(source))}")
        self.lines.append(f"  cmd = {cmd.replace('$', '$$')}\n  dep = {target}.d\n  what = compile {name}")
        return str(target)

    def link(self, target: Path, objects: list[str], command: list[str]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        cmd = subprocess.list2cmdline([*command[:1], "-shared", *objects, "-o", str(target), *command[1:]])
        self.lines.append(f"build {escape(str(target))}: link {' '.join(map(escape, objects))}")
        self.lines.append(f"  cmd = {cmd.replace('$', '$$')}\n  what = link {target.name}")

    def run(self, verbose: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "build.ninja").write_text("\n".join(self.lines) + "\n", encoding="utf8")
        try:
            import ninja

            program = os.path.join(ninja.BIN_DIR, "ninja")
        except ImportError:
            program = shutil.which("ninja") or sys.exit("setup.py: ninja is missing: pip install ninja")
        jobs = [f"-j{os.environ['MAX_JOBS']}"] if "MAX_JOBS" in os.environ else []
        result = subprocess.run([program, "-C", str(self.folder), *jobs, *(["-v"] if verbose else [])])
        if result.returncode:
            sys.exit("setup.py: the extension did not build; the first error is above")


class BuildExtension(build_ext):
    """Compiles both libraries through ninja, each object with its own flags."""

    def finalize_options(self) -> None:
        if not wants_cuda():
            kept = [ext for ext in self.distribution.ext_modules if ext.name != CUDA_LIBRARY]
            self.distribution.ext_modules = kept
        super().finalize_options()

    def build_extensions(self) -> None:
        torch = find_torch()
        torch_root = Path(torch.__file__).parent
        self.include = [f"-I{ROOT / 'csrc'}", "-isystem", str(torch_root / "include")]
        self.link_torch = [f"-L{torch_root / 'lib'}", "-ltorch_cpu"]
        self.cxx = os.environ.get("CXX") or ("g++" if shutil.which("g++") else "c++")
        self.cxx_flags = [*CXX_FLAGS, *os.environ.get("CXXFLAGS", "").split()]
        self.torch_version = torch.__version__
        names = {ext.name for ext in self.extensions}
        self.with_cuda = CUDA_LIBRARY in names
        ninja = NinjaFile(Path(self.build_temp).resolve())
        for ext in self.extensions:
            target = Path(self.get_ext_fullpath(ext.name)).resolve()
            (self.plan_cuda if ext.name == CUDA_LIBRARY else self.plan_cpu)(ninja, target)
        ninja.run(verbose=self.verbose > 1)

    def plan_cpu(self, ninja: NinjaFile, target: Path) -> None:
        compiler = [self.cxx, *self.cxx_flags]
        objects = []
        sets = [f"-DPYRAMID_HAS_{name.upper()}" for name in INSTRUCTION_SETS]
        for source in sorted((ROOT / "csrc" / "kernels").glob("*_cpu.cpp")):
            for name, flags in INSTRUCTION_SETS.items():
                command = [*compiler, *self.include[:1], *flags, *sets, f"-DPYRAMID_ISA={name}"]
                objects.append(ninja.compile(source, f"{name_of(source)}_{name}", command))
        sources = [p for p in sorted((ROOT / "csrc" / "ops").glob("*.cpp")) if not p.stem.endswith("_cuda")]
        for source in [*sources, ROOT / "csrc" / "schema.cpp"]:
            objects.append(ninja.compile(source, name_of(source), [*compiler, *self.include, *sets, TORCH_TARGET]))

        import pybind11

        python = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
        facts = {
            "PYRAMID_BUILD_FLAGS": " ".join(self.cxx_flags),
            "PYRAMID_BUILD_TORCH": self.torch_version,
            "PYRAMID_BUILD_CUDA": ",".join(CUDA_ARCHITECTURES) if self.with_cuda else "",
        }
        defines = [f'-D{key}="{value}"' for key, value in facts.items()]
        module = ROOT / "csrc" / "module.cpp"
        objects.append(ninja.compile(module, "module", [*compiler, *self.include, *python, *sets, *defines]))
        dynamic = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        ninja.link(target, objects, [self.cxx, *self.link_torch, *dynamic])

    def plan_cuda(self, ninja: NinjaFile, target: Path) -> None:
        compiler = [find_nvcc() or "nvcc", "-ccbin", self.cxx, *NVCC_FLAGS]
        objects = []
        for source in sorted((ROOT / "csrc" / "kernels").glob("*_cuda.cu")):
            objects.append(ninja.compile(source, name_of(source), [*compiler, *self.include[:1]]))
        for source in sorted((ROOT / "csrc" / "ops").glob("*_cuda.cpp")):
            objects.append(ninja.compile(source, name_of(source), [*compiler, *self.include, TORCH_TARGET]))
        torch_cuda = ["-ltorch_cuda"] if list(Path(self.link_torch[0][2:]).glob("libtorch_cuda.*")) else []
        # Undefined torch symbols are left open: this library also links where torch has no CUDA.
        ninja.link(target, objects, [compiler[0], "--cudart=shared", *self.link_torch, *torch_cuda])


if __name__ == "__main__":
    setup(
        packages=PACKAGES,
        package_data=PACKAGE_DATA,
        ext_modules=[Extension("pyramid._C", sources=[]), Extension(CUDA_LIBRARY, sources=[])],
        cmdclass={"build_ext": BuildExtension},
        zip_safe=False,
    )
