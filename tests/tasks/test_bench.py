"""`pyramid bench ops`: JSON rows on stdout, all else on stderr, files, one line for what the user can mend."""

from __future__ import annotations

import json

import pytest
import torch

from pyramid import ops
from pyramid.ops import _library, bench
from pyramid.ops.bench import Case, Contest, measure
from tasks import cli, training_steps


@pytest.fixture
def one_case(monkeypatch):
    if not _library.load():
        pytest.skip("the extension is not built")
    monkeypatch.setattr(measure, "MIN_SECONDS", 0.0)

    def make(device):
        z, codebook = torch.zeros(2, 3), torch.zeros(4, 3)
        return Contest(
            lambda: ops.nearest_code(z, codebook), {"cdist": lambda: torch.cdist(z, codebook), "gone": "is gone"}
        )

    monkeypatch.setattr(bench, "default_cases", lambda device: [Case("nearest_code", "tiny", device, make)])
    monkeypatch.setattr(training_steps, "cases", lambda device: [])


def test_json_has_rows_alone(one_case, capsys, tmp_path):
    assert cli.main(["bench", "ops", "--json", "--out", str(tmp_path / "ops")]) == 0
    out, err = capsys.readouterr()
    (row,) = map(json.loads, out.splitlines())
    assert tuple(row) == bench.KEYS
    assert "gone: no time, is gone" in err
    assert json.loads((tmp_path / "ops.json").read_text()) == [row]
    assert "gone: no time" in (tmp_path / "ops.txt").read_text()


def test_text_is_a_table(one_case, capsys):
    assert cli.main(["bench", "ops", "--op", "nearest_code"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("# ") and out[-1].startswith("# nearest_code: ")
    assert sum(line.startswith("nearest_code ") for line in out) == 1


def test_an_unknown_op_names_the_known(capsys):
    assert cli.main(["bench", "ops", "--op", "nearest_cod"]) == 2
    assert "expected some of nearest_code, " in capsys.readouterr().err


def test_results_are_not_overwritten(one_case, capsys, tmp_path):
    (tmp_path / "ops.json").write_text("[]")
    assert cli.main(["bench", "ops", "--out", str(tmp_path / "ops")]) == 2
    assert "ops.json: exists already" in capsys.readouterr().err
    assert cli.main(["bench", "ops", "--out", str(tmp_path / "ops"), "--overwrite"]) == 0


@pytest.mark.parametrize("make", [training_steps.tokenizer_step, training_steps.lm_step])
def test_a_step_is_the_same_on_either_backend(make):
    losses = {}
    for name in ("auto", "reference"):
        with ops.backend(name):
            step = make(torch.device("cpu"), ("run.batch_size=2", "run.precision=fp32"))
            losses[name] = step()
            assert step() != losses[name]  # it learns
    assert losses["auto"] == pytest.approx(losses["reference"], rel=1e-3)
