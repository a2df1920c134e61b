"""The scripts of benchmarks/: the check on a GPU where there is none, and the plot of the kernels."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def gpu_check(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "benchmarks" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(gpu_check, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(gpu_check, "missing", lambda: ([], []))
    monkeypatch.setattr(gpu_check, "prepare_build", lambda: ["false"])
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    out = capfd.readouterr().out
    assert f"gpu_check: expected a GPU, torch {torch.__version__} finds none" in out
    table = out[out.index("stage ") :].splitlines()
    assert len(table) == 2 and table[1].endswith("exit status 1")  # nothing else was tried


def test_what_is_missing_is_said_before_anything_runs(gpu_check, monkeypatch, tmp_path, capfd):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        gpu_check.importlib.util, "find_spec", lambda name: None if name in ("setuptools", "ninja") else real(name)
    )
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    out, err = capfd.readouterr()
    assert "missing: setuptools" in err and "missing: nvcc" in err and "missing: a C++ compiler" in err
    assert "missing: torch" not in err and "goes on without: ninja" in out and "==" not in out


def test_a_stage_keeps_its_output_and_its_status(gpu_check, tmp_path):
    code = "import os; print('said', os.environ['GIVEN']); raise SystemExit(3)"
    stage = gpu_check.Stage("one", [sys.executable, "-c", code], 1.0, {"GIVEN": "this"})
    outcome = gpu_check.run(stage, 30.0, tmp_path)
    assert (outcome.status, outcome.well) == ("exit status 3", False)
    assert (tmp_path / "one.log").read_text() == "said this\n"


def test_a_stage_out_of_time_may_write_what_it_has(gpu_check, tmp_path):
    code = "import time\ntry:\n    print('ready', flush=True); time.sleep(60)\nfinally:\n    print('kept', flush=True)"
    start = time.monotonic()
    outcome = gpu_check.run(gpu_check.Stage("slow", [sys.executable, "-c", code], 1.0, {}), 2.0, tmp_path)
    assert outcome.status == "stopped after 2 s" and time.monotonic() - start < 15
    assert (tmp_path / "slow.log").read_text().startswith("ready\nkept")


def test_the_plot_takes_the_best_rivals(tmp_path):
    def row(op, case, rival, ratio):
        times = {"ours_ms": 1.0, "rival": rival, "rival_ms": ratio, "ratio": ratio}
        return {"op": op, "case": case, "device": "made up", **times, "ours_mib": None, "rival_mib": 1.0}

    rows = [row("a", "small", "one", 4.0), row("a", "small", "two", 0.5), row("b", "large", "one", 90.0)]
    (tmp_path / "ops.json").write_text(json.dumps(rows))
    command = [sys.executable, str(ROOT / "benchmarks" / "plot_ops.py"), "ops.json", "ops.svg"]
    subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    texts = (tmp_path / "ops.svg").read_text()
    for text in ("0.5x", "90x", "two: 0.5 ms, ours 1 ms"):
        assert f"<!-- {text} -->" in texts
    assert "one: 4 ms" not in texts
