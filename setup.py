"""Builds the extension: `pyramid._C` (CPU, always) and `pyramid._C_cuda` (CUDA, see PYRAMID_CUDA below).

    pip install --no-build-isolation -e .        or        python setup.py build_ext --inplace

PYRAMID_CUDA=auto (default): CUDA kernels are built when torch has CUDA and nvcc is found; 1: built, whatever torch says
(they compile and link on a machine without a GPU); 0: never. The metadata is in pyproject.toml.

CXXFLAGS and LDFLAGS come after our own flags (`make sanitize` sets them).

The sources use torch's stable ABI only, so nothing here needs torch's own extension builder: each object is one line of
a ninja file, or of this process where there is no ninja. A kernel file `csrc/kernels/*_cpu.cpp` is compiled once for
every instruction set (see csrc/README.md). What ptxas says of a CUDA kernel file stays in a log beside its object, for
csrc/resources.py.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGES = [
    "pyramid",
    "pyramid.data",
    "pyramid.nn",
    "pyramid.ops",
    "pyramid.ops.bench",
    "pyramid.quantize",
    "pyramid.teachers",
    "lm",
    "tasks",
]
PACKAGE_DATA = {name: ["py.typed", "configs/*.yaml", "assets/*"] for name in ("pyramid", "lm")}
PACKAGE_DATA["tasks"] = ["py.typed", "shipped/**"]

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
    "-Xptxas=-v",
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


@dataclass(frozen=True)
class Step:
    target: Path
    inputs: list[str]
    command: str  # for the shell
    what: str
    depfile: Path | None = None


class Build:
    """The steps of a build: one an object, then one a library. Ninja takes them, and makes only what has changed; where
    there is no ninja, this process makes everything."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.compiles: list[Step] = []
        self.links: list[Step] = []
        self.logs: list[Path] = []

    def compile(self, source: Path, name: str, command: list[str], log: bool = False) -> str:
        """`log`: what the compiler says is kept in <name>.log, and shown when it fails."""
        target = self.folder / f"{name}.o"
        depfile = Path(f"{target}.d")
        line = subprocess.list2cmdline([*command, "-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(target)])
        if log:
            self.logs.append(path := self.folder / f"{name}.log")
            line = f'{line} > "{path}" 2>&1 || {{ cat "{path}"; exit 1; }}'
        self.compiles.append(Step(target, [str(source)], line, f"compile {name}", depfile))
        return str(target)

    def link(self, target: Path, objects: list[str], command: list[str]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        line = subprocess.list2cmdline([*command[:1], "-shared", *objects, "-o", str(target), *command[1:]])
        self.links.append(Step(target, objects, line, f"link {target.name}"))

    def run(self, verbose: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        program = find_ninja()
        if not (self._by_ninja(program, verbose) if program else self._by_hand(verbose)):
            sys.exit("setup.py: the extension did not build; the first error is above")
        for path in self.logs:
            text = path.read_text(encoding="utf8", errors="replace")
            for line in text.splitlines():
                if "warning" in line.lower():
                    print(line)

    def _by_ninja(self, program: str, verbose: bool) -> bool:
        lines = [
            "ninja_required_version = 1.5",
            "rule compile\n  command = $cmd\n  depfile = $dep\n  deps = gcc\n  description = $what",
            "rule link\n  command = $cmd\n  description = $what",
        ]
        for step in [*self.compiles, *self.links]:
            rule = "compile" if step.depfile else "link"
            lines.append(f"build {escape(str(step.target))}: {rule} {' '.join(map(escape, step.inputs))}")
            lines.append(f"  cmd = {step.command.replace('$', '$$')}\n  dep = {step.depfile}\n  what = {step.what}")
        (self.folder / "build.ninja").write_text("\n".join(lines) + "\n", encoding="utf8")
        jobs = [f"-j{os.environ['MAX_JOBS']}"] if "MAX_JOBS" in os.environ else []
        return not subprocess.run([program, "-C", str(self.folder), *jobs, *(["-v"] if verbose else [])]).returncode

    def _by_hand(self, verbose: bool) -> bool:
        print("setup.py: no ninja, so every file is compiled (pip install ninja: only those that changed)")

        def make(step: Step) -> bool:
            print(step.command if verbose else step.what, flush=True)
            return not subprocess.run(step.command, shell=True).returncode

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            return all(list(pool.map(make, self.compiles))) and all(map(make, self.links))


def find_ninja() -> str | None:
    try:
        import ninja
    except ImportError:
        return shutil.which("ninja")
    return os.path.join(ninja.BIN_DIR, "ninja")


def find_pybind11(torch_include: Path) -> str:
    """The package's headers, or those that torch brings."""
    try:
        import pybind11
    except ImportError:
        if (torch_include / "pybind11" / "pybind11.h").is_file():
            return str(torch_include)
        sys.exit("setup.py: pybind11 is missing, and this torch brings no headers of it: pip install pybind11")
    return pybind11.get_include()


class BuildExtension(build_ext):
    """Compiles both libraries, each object with its own flags."""

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
        self.link_flags = os.environ.get("LDFLAGS", "").split()
        self.torch_version = torch.__version__
        names = {ext.name for ext in self.extensions}
        self.with_cuda = CUDA_LIBRARY in names
        build = Build(Path(self.build_temp).resolve())
        for ext in self.extensions:
            target = Path(self.get_ext_fullpath(ext.name)).resolve()
            (self.plan_cuda if ext.name == CUDA_LIBRARY else self.plan_cpu)(build, target)
        build.run(verbose=self.verbose > 1)

    def plan_cpu(self, build: Build, target: Path) -> None:
        compiler = [self.cxx, *self.cxx_flags]
        objects = []
        sets = [f"-DPYRAMID_HAS_{name.upper()}" for name in INSTRUCTION_SETS]
        for source in sorted((ROOT / "csrc" / "kernels").glob("*_cpu.cpp")):
            for name, flags in INSTRUCTION_SETS.items():
                command = [*compiler, *self.include[:1], *flags, *sets, f"-DPYRAMID_ISA={name}"]
                objects.append(build.compile(source, f"{name_of(source)}_{name}", command))
        sources = [p for p in sorted((ROOT / "csrc" / "ops").glob("*.cpp")) if not p.stem.endswith("_cuda")]
        for source in [*sources, ROOT / "csrc" / "schema.cpp"]:
            objects.append(build.compile(source, name_of(source), [*compiler, *self.include, *sets, TORCH_TARGET]))

        python = [f"-I{find_pybind11(Path(self.include[-1]))}", f"-I{sysconfig.get_paths()['include']}"]
        facts = {
            "PYRAMID_BUILD_FLAGS": " ".join(self.cxx_flags),
            "PYRAMID_BUILD_TORCH": self.torch_version,
            "PYRAMID_BUILD_CUDA": ",".join(CUDA_ARCHITECTURES) if self.with_cuda else "",
        }
        defines = [f'-D{key}="{value}"' for key, value in facts.items()]
        module = ROOT / "csrc" / "module.cpp"
        objects.append(build.compile(module, "module", [*compiler, *self.include, *python, *sets, *defines]))
        dynamic = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        build.link(target, objects, [self.cxx, *self.link_torch, *dynamic, *self.link_flags])

    def plan_cuda(self, build: Build, target: Path) -> None:
        compiler = [find_nvcc() or "nvcc", "-ccbin", self.cxx, *NVCC_FLAGS]
        objects = []
        for source in sorted((ROOT / "csrc" / "kernels").glob("*_cuda.cu")):
            objects.append(build.compile(source, name_of(source), [*compiler, *self.include[:1]], log=True))
        for source in sorted((ROOT / "csrc" / "ops").glob("*_cuda.cpp")):
            objects.append(build.compile(source, name_of(source), [*compiler, *self.include, TORCH_TARGET]))
        torch_cuda = ["-ltorch_cuda"] if list(Path(self.link_torch[0][2:]).glob("libtorch_cuda.*")) else []
        # Undefined torch symbols are left open: this library also links where torch has no CUDA.
        build.link(target, objects, [compiler[0], "--cudart=shared", *self.link_torch, *torch_cuda])


if __name__ == "__main__":
    setup(
        packages=PACKAGES,
        package_data=PACKAGE_DATA,
        ext_modules=[Extension("pyramid._C", sources=[]), Extension(CUDA_LIBRARY, sources=[])],
        cmdclass={"build_ext": BuildExtension},
        zip_safe=False,
    )
