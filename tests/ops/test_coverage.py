"""Habits as tests: an op without a row, a kernel with a torch header, an op without a fake all fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from ops.cases import OPS

from pyramid.ops import _library

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def schemas() -> list[str]:
    text = (CSRC / "schema.cpp").read_text(encoding="utf8")
    return re.findall(r'm\.def\(\s*"(\w+)\(', text)


def test_every_op_has_a_row():
    if not _library.load():
        pytest.skip("the extension is not built")
    names = torch._C._dispatch_get_all_op_names()
    registered = {name.split("::")[1].split(".")[0] for name in names if name.startswith("pyramid::")}
    assert registered == {op.name for op in OPS}


def test_every_schema_in_the_sources_has_a_row():
    assert sorted(schemas()) == sorted(op.name for op in OPS)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_op_has_cpu_cuda_and_a_reference(op):
    from pyramid.ops import reference

    assert callable(getattr(reference, op.name))
    for device, suffix in (("CPU", ""), ("CUDA", "_cuda")):
        stem = op.name.removesuffix("_backward")
        text = (CSRC / "ops" / f"{stem}{suffix}.cpp").read_text(encoding="utf8")
        assert f"STABLE_TORCH_LIBRARY_IMPL(pyramid, {device}, m)" in text and f'm.impl("{op.name}"' in text
        assert (CSRC / "kernels" / f"{stem}{'_cuda.cu' if suffix else '_cpu.cpp'}").is_file()


def sources(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(encoding="utf8"), flags=re.M)


def test_kernels_know_nothing_of_torch():
    torch_headers = re.compile(r"torch/|ATen/|c10/|pybind11/|Python\.h")
    files = sources(CSRC / "kernels")
    assert [(path.name, name) for path in files for name in includes(path) if torch_headers.match(name)] == []


def test_only_stable_headers_of_torch():
    stable = re.compile(r"torch/(csrc/stable|headeronly|csrc/inductor/aoti_torch/c)/")
    used = [(p.name, name) for p in sources(CSRC) for name in includes(p) if re.match(r"torch/|ATen/|c10/", name)]
    assert used and [pair for pair in used if not stable.match(pair[1])] == []


def test_a_source_includes_its_own_header_first():
    for path in sources(CSRC):
        stem = re.sub(r"_(cpu|cuda)$", "", path.stem)
        if path.suffix in {".cpp", ".cu"} and path.with_name(f"{stem}.h").is_file():
            assert includes(path)[0].split("/")[-1] == f"{stem}.h", path


def test_schemas_stand_in_one_file():
    definitions = [p.name for p in sources(CSRC) if re.search(r"STABLE_TORCH_LIBRARY(_FRAGMENT)?\(", p.read_text())]
    assert definitions == ["schema.cpp"]
