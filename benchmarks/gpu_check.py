"""On a machine with a GPU and no network: builds the CUDA kernels, tests them, times them beside their rivals.

    python benchmarks/gpu_check.py --minutes 25 --out runs/gpu_check

Takes this python and its torch as they are; nothing is installed, and what is missing is said first. Each stage is a
process of its own with a time limit; its output is kept in OUT/<stage>.log, the results are OUT/ops_cuda.txt and .json.
Ends with a table of the stages; exit status 0 if all of them are well.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "gpu_check"
LOADS = """
import torch
from pyramid.ops import build_info
info = build_info()
print(info)
assert "cuda" in info["devices"], f"expected CUDA kernels, got those for {info['devices']}"
"""
GPU = """
import sys, torch
if not torch.cuda.is_available():
    sys.exit(f"gpu_check: expected a GPU, torch {torch.__version__} finds none")
name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
print(f"{name}, sm_{capability[0]}{capability[1]}, torch {torch.__version__}, CUDA {torch.version.cuda}")
"""


@dataclass
class Stage:
    """`share`: of the time that is left, the most it may take."""

    name: str
    command: list[str]
    share: float
    environment: dict[str, str]


@dataclass
class Outcome:
    name: str
    status: str
    seconds: float

    @property
    def well(self) -> bool:
        return self.status == "ok"


def missing() -> tuple[list[str], list[str]]:
    """What this machine lacks: what stops the check, and what only narrows it."""

    def package(name: str) -> bool:
        return importlib.util.find_spec(name) is not None

    torch = importlib.util.find_spec("torch")
    bundled = Path(torch.origin).parent / "include" / "pybind11" if torch and torch.origin else None
    nvcc = [f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc", shutil.which("nvcc") or ""]
    needs = {
        "python >= 3.10": sys.version_info >= (3, 10),
        "torch": package("torch"),
        "numpy (the tests)": package("numpy"),
        "pytest (the tests)": package("pytest"),
        "setuptools": package("setuptools"),
        "pybind11, or a torch that brings its headers": package("pybind11") or bool(bundled and bundled.is_dir()),
        "Python.h (python3-dev)": Path(sysconfig.get_paths()["include"], "Python.h").is_file(),
        "a C++ compiler (CXX, g++ or c++)": any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++"))),
        "nvcc, in CUDA_HOME, /usr/local/cuda or PATH": any(os.access(path, os.X_OK) for path in nvcc if path),
    }
    useful = {
        "ninja: every file is compiled each time": package("ninja") or bool(shutil.which("ninja")),
        "hypothesis: tests that draw their cases can't be collected": package("hypothesis"),
        "triton: no rival is compiled": package("triton"),
    }
    return [name for name, there in needs.items() if not there], [name for name, there in useful.items() if not there]


def prepare_build() -> list[str]:
    """The command that builds both libraries. setup.py is copied away from pyproject.toml, whose license field asks for
    a newer setuptools than a machine may have."""
    WORK.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "setup.py", WORK / "setup.py")
    if not (WORK / "csrc").exists():
        (WORK / "csrc").symlink_to(ROOT / "csrc", target_is_directory=True)
    return [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "lib", "--build-temp", "temp"]


def install_build() -> None:
    for library in sorted((WORK / "lib" / "pyramid").glob("*.so")):
        shutil.copy(library, ROOT / "pyramid" / library.name)


def _heed_interrupts() -> None:
    """A child of a run in the background would ignore Ctrl-C, as its parent does, and write nothing at its end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(stage: Stage, seconds: float, out: Path) -> Outcome:
    """Show what the stage prints, and keep it. At the end of its time it is interrupted, which lets it write what it
    has, and then killed."""
    start = time.monotonic()
    shown = " ".join(word for word in stage.command if "\n" not in word)
    print(f"\n== {stage.name}, at most {seconds:.0f} s: {shown}", flush=True)
    process = subprocess.Popen(
        stage.command,
        cwd=WORK if stage.name == "build" else ROOT,
        env={**os.environ, **stage.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=_heed_interrupts,
    )

    def show() -> None:
        assert process.stdout is not None
        with (out / f"{stage.name}.log").open("w", encoding="utf8") as log:
            for line in process.stdout:
                print(line, end="", flush=True)
                log.write(line)

    reader = threading.Thread(target=show, daemon=True)
    reader.start()
    status = ""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = f"stopped after {seconds:.0f} s"
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    reader.join(10)
    code = process.returncode
    return Outcome(stage.name, status or ("ok" if code == 0 else f"exit status {code}"), time.monotonic() - start)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25, help="for all stages together")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "runs" / "gpu_check")))
    parser.add_argument("--only", choices=("build",), help="only this stage, which needs no GPU")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    lacking, narrower = missing()
    for name in narrower:
        print(f"gpu_check: missing, goes on without: {name}")
    for name in lacking:
        print(f"gpu_check: missing: {name}", file=sys.stderr)
    if lacking:
        return 1
    python, cuda = sys.executable, {"PYRAMID_CUDA": "1"}
    stages = [
        Stage("gpu", [python, "-c", GPU], 1.0, {}),
        Stage("build", prepare_build(), 0.7, cuda),
        Stage("load", [python, "-c", LOADS], 1.0, {}),
        Stage("tests", [python, "-m", "pytest", "tests/ops", "-m", "cuda", "-q", "--durations=5"], 0.6, {}),
        Stage(
            "bench", [python, "-m", "pyramid.ops.bench", "--device", "cuda", "--out", str(out / "ops_cuda")], 1.0, {}
        ),
    ]
    done: list[Outcome] = []
    after: dict[str, Callable[[], None]] = {"build": install_build}
    for stage in stages:
        if options.only not in (None, stage.name):
            continue
        left = end - time.monotonic()
        outcome = run(stage, left * stage.share, out) if left > 5 else Outcome(stage.name, "no time left", 0.0)
        done.append(outcome)
        if outcome.well and stage.name in after:
            after[stage.name]()
        if not outcome.well and stage.name in ("gpu", "build", "load"):
            break  # the others would fail for the same reason
    print(f"\n{'stage':8}{'seconds':>8}  status")
    for outcome in done:
        print(f"{outcome.name:8}{outcome.seconds:8.0f}  {outcome.status}")
    return 0 if all(outcome.well for outcome in done) else 1


if __name__ == "__main__":
    sys.exit(main())
