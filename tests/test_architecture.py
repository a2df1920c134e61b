"""The rules of the layout, held by tests: who may import whom, what stays light, how long a file may be."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pyramid", "lm", "tasks")
# A package may import itself and what stands below it.
BELOW = {"tasks": {"tasks", "lm", "pyramid"}, "lm": {"lm", "pyramid"}, "pyramid": {"pyramid"}}
MAX_LINES = 600


def python_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Full names of all modules that a file imports anywhere, relative imports resolved."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
                base = ".".join((*parts, base) if base else parts)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


IMPORTS = {path: imports_of(path) for path in python_files()}


def offenders(forbidden: str, allowed: set[str]) -> list[str]:
    pattern = re.compile(forbidden)
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, names in IMPORTS.items()
        if str(path.relative_to(ROOT)) not in allowed
        for name in sorted(names)
        if pattern.fullmatch(name)
    ]


def test_imports_go_one_way():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, names in IMPORTS.items()
        for name in sorted(names)
        if (top := name.split(".")[0]) in PACKAGES and top not in BELOW[name_of(path).split(".")[0]]
    ]
    assert not wrong


def test_ops_import_nothing_of_the_toolkit_but_themselves():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, names in IMPORTS.items()
        if name_of(path).startswith("pyramid.ops")
        for name in sorted(names)
        if name.split(".")[0] in PACKAGES
        and not name.startswith("pyramid.ops")
        and name not in ("pyramid", "pyramid._C")
    ]
    assert not wrong


def test_one_file_loads_the_extension():
    assert not offenders(r"pyramid\._C(_cuda)?", {"pyramid/ops/_library.py"})


def test_one_file_imports_omegaconf():
    assert not offenders(r"omegaconf(\..*)?", {"pyramid/config.py"})


def test_lightning_stays_in_training_and_data_modules():
    allowed = {str(path.relative_to(ROOT)) for path in IMPORTS if re.search(r"^train|datamodule", path.name)}
    assert not offenders(r"(pytorch_)?lightning(\..*)?", allowed)


def test_nothing_needs_torchvision():
    assert not offenders(r"torchvision(\..*)?", set())


def test_import_pyramid_is_light():
    heavy = ["lightning", "transformers", "pyramid._C", "pyramid._C_cuda", "matplotlib", "av"]
    code = f"import sys, pyramid, json; print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []


def test_the_command_line_starts_without_torch():
    code = "import sys, tasks.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_kernels_include_no_torch():
    wrong = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "csrc" / "kernels").rglob("*"))
        if path.is_file()
        for line in path.read_text(encoding="utf8").splitlines()
        if re.match(r'\s*#\s*include\s*[<"](torch|ATen|c10|pybind11|Python)', line)
    ]
    assert not wrong


def test_no_long_files():
    suffixes = {".py", ".cpp", ".cu", ".cuh", ".h"}
    folders = (*PACKAGES, "csrc", "tests", "benchmarks", "examples")
    files = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf8").splitlines()) for p in files}
    assert {name: count for name, count in lengths.items() if count > MAX_LINES} == {}


def test_names_say_the_idea():
    banned = {"utils.py", "util.py", "misc.py", "helpers.py", "common.py"}
    assert [str(path.relative_to(ROOT)) for path in IMPORTS if path.name in banned] == []


def test_tests_are_no_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_every_package_is_listed_in_setup():
    found = {name_of(path) for path in IMPORTS if path.name == "__init__.py"}
    strings = {
        node.value
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert found <= strings, f"setup.py does not list {sorted(found - strings)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_of_modules_lacks_its_init(package):
    folders = {path.parent for path in IMPORTS if path.relative_to(ROOT).parts[0] == package}
    assert [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").is_file()] == []


def test_every_shipped_yaml_is_a_mapping():
    for path in sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.y*ml")):
        content = yaml.safe_load(path.read_text(encoding="utf8"))
        assert isinstance(content, dict), path


def test_constraints_pin_torch_and_leave_torchvision_out():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf8").splitlines()
    assert "torch==2.13.0" in lines
    assert not any(line.startswith("torchvision") for line in lines)


def test_an_install_holds_every_file(tmp_path):
    """Sources, configs, word table and the shipped model: what a wheel lacks, an editable install hides."""
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    built = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }
    assert wanted - built == set()
