"""The build without ninja: every step is taken, a failure is one, and a log is kept."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture
def build(tmp_path, monkeypatch):
    path = Path(__file__).resolve().parents[1] / "setup.py"
    spec = importlib.util.spec_from_file_location("setup_of_pyramid", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "setup_of_pyramid", module)  # dataclasses look there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "find_ninja", lambda: None)
    return module.Build(tmp_path / "objects")


# Stands for a compiler: writes its output, says something, and fails on a source named bad.
COMPILER = """\
import sys
words = sys.argv[1:]
print("warning: made up" if "-c" in words else "linked")
sys.exit("bad source") if any(word.endswith("bad.c") for word in words) else None
open(words[words.index("-o") + 1], "w").write(" ".join(words))
"""


@pytest.fixture
def compiler(tmp_path):
    path = tmp_path / "compiler"
    path.write_text(f"#!{sys.executable}\n{COMPILER}")
    path.chmod(0o755)
    return [str(path)]


def test_every_file_is_compiled_and_the_log_kept(build, compiler, tmp_path, capfd):
    objects = [build.compile(tmp_path / f"{name}.c", name, compiler, log=True) for name in ("one", "two")]
    build.link(tmp_path / "lib" / "both.so", objects, compiler)
    build.run(verbose=False)
    assert all(Path(path).is_file() for path in objects) and (tmp_path / "lib" / "both.so").is_file()
    assert (build.folder / "one.log").read_text() == "warning: made up\n"
    out = capfd.readouterr().out
    assert "no ninja" in out and out.count("warning: made up") == 2


def test_a_failure_ends_the_build(build, compiler, tmp_path, capfd):
    objects = [build.compile(tmp_path / f"{name}.c", name, compiler, log=True) for name in ("good", "bad")]
    build.link(tmp_path / "both.so", objects, compiler)
    with pytest.raises(SystemExit, match="did not build"):
        build.run(verbose=False)
    assert not (tmp_path / "both.so").exists()
    assert "bad source" in capfd.readouterr().out
