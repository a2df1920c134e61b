"""What every CUDA kernel takes, from what ptxas said when it was compiled: python csrc/resources.py LOG...

Prints a line a kernel and architecture: registers a thread, static shared memory a block, stack and spills a thread.
Fails (exit 1) where a kernel spills, or has a stack: memory behind the caches in place of registers. setup.py keeps the
logs beside the objects; `make cuda-check` calls this.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '(sm_\w+)'")
_FUNCTION = re.compile(r"Function properties for (\S+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Function:
    """A kernel, or (`registers` None) a function that kernels call because it was not inlined. Sizes in bytes."""

    symbol: str
    architecture: str
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    registers: int | None = None
    shared: int = 0

    @property
    def fault(self) -> str | None:
        if self.spill_stores or self.spill_loads:
            return f"spills registers: {self.spill_stores} bytes stored, {self.spill_loads} loaded"
        if self.stack:
            return f"keeps {self.stack} bytes on the stack: an array with an index unknown to the compiler, or a call"
        return None


def parse(log: str) -> list[Function]:
    """What `nvcc -Xptxas=-v` printed -> its kernels, and the functions that were not inlined, in that order of lines.

    Raises ValueError for a log that is not understood: a check that reads nothing would pass.
    """
    found: list[Function] = []
    architecture, current = "", None
    entry: Function | None = None
    for number, line in enumerate(log.splitlines(), start=1):
        if match := _ENTRY.search(line):
            if entry is not None and entry.registers is None:
                raise ValueError(f"resources: line {number}: expected the registers of {entry.symbol}, got {line!r}")
            architecture = match[2]
            entry = Function(match[1], architecture)
            found.append(entry)
        elif match := _FUNCTION.search(line):
            current = entry if entry is not None and match[1] == entry.symbol else Function(match[1], architecture)
            if current is not entry:
                found.append(current)
        elif match := _STACK.search(line):
            if current is None:
                raise ValueError(f"resources: line {number}: expected the name of a function first, got {line!r}")
            current.stack, current.spill_stores, current.spill_loads = map(int, match.groups())
            current = None
        elif match := _REGISTERS.search(line):
            if entry is None or entry.registers is not None:
                raise ValueError(f"resources: line {number}: expected the name of a kernel first, got {line!r}")
            entry.registers = int(match[1])
            entry.shared = int(shared[1]) if (shared := _SHARED.search(line)) else 0
    if entry is None:
        raise ValueError("resources: expected what nvcc -Xptxas=-v prints, got a log without any kernel")
    if entry.registers is None:
        raise ValueError(f"resources: expected the registers of {entry.symbol}, got the end of the log")
    return found


def short_names(symbols: Iterable[str]) -> dict[str, str]:
    """Mangled name -> name with template arguments, no namespaces or parameters; as it is where c++filt is absent."""
    symbols = list(dict.fromkeys(symbols))
    if shutil.which("c++filt") is None:
        return {symbol: symbol for symbol in symbols}
    text = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    return {symbol: _shortened(name) for symbol, name in zip(symbols, text.splitlines(), strict=True)}


def _shortened(name: str) -> str:
    name = name.replace("(anonymous namespace)::", "")
    name = re.sub(r"\((?:int|long|unsigned int|bool|[\w:]*)\)(?=-?\d)", "", name)  # (int)4 -> 4
    depth = 0
    for index, char in enumerate(name):  # up to the parameters
        depth += (char == "<") - (char == ">")
        if char == "(" and depth == 0:
            name = name[:index]
            break
    return re.sub(r"\b\w+::", "", name.removeprefix("void "))


def main(paths: list[str]) -> int:
    if not paths:
        print("resources: expected the logs of the kernels, got none", file=sys.stderr)
        return 2
    logs = {path: Path(path).read_text(encoding="utf8") for path in sorted(paths)}
    functions = [function for text in logs.values() for function in parse(text)]
    names = short_names(function.symbol for function in functions)
    width = max(map(len, names.values()))
    print(f"{'kernel':{width}} {'arch':7} {'registers':>9} {'shared':>7} {'stack':>6} {'spilled':>8}")
    for f in functions:
        registers = "called" if f.registers is None else f.registers
        spilled = f.spill_stores + f.spill_loads
        print(f"{names[f.symbol]:{width}} {f.architecture:7} {registers:>9} {f.shared:>7} {f.stack:>6} {spilled:>8}")
    for path, text in logs.items():  # such as matrix instructions that wait for each other
        for line in dict.fromkeys(line for line in text.splitlines() if "Performance Loss" in line):
            print(f"resources: {Path(path).stem}: {line}", file=sys.stderr)
    faulty = [function for function in functions if function.fault]
    for function in faulty:
        print(f"resources: {names[function.symbol]}, {function.architecture} {function.fault}", file=sys.stderr)
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
