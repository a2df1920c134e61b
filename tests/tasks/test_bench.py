"""`pyramid bench ops`: JSON rows on stdout, all else on stderr, files, one line for what the user can mend."""

from __future__ import annotations

import json

import pytest
import torch

from pyramid import ops
from pyramid.ops import _library, bench
from pyramid.ops.bench import Case, Contest, measure
from tasks import cli, tokenizer_speed, training_steps


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


@pytest.fixture
def small_cases(monkeypatch):
    monkeypatch.setattr(tokenizer_speed, "MIN_SECONDS", 0.0)
    cases = (tokenizer_speed.CASES[0], tokenizer_speed.Case(2, 20, 40, streams=2, tile=16))
    monkeypatch.setattr(tokenizer_speed, "CASES", cases)


def test_the_tokenizer_is_timed(small_cases, capsys, tmp_path):
    out = tmp_path / "tokenizer"
    assert cli.main(["bench", "tokenizer", "-c", "mini", "--json", "--out", str(out)]) == 0
    rows = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert all(tuple(row) == tokenizer_speed.KEYS for row in rows)
    ours = [row for row in rows if row["source"] == "measured"]
    assert [(row["verb"], row["case"]) for row in ours] == [
        (verb, case)
        for case in ("17x128x128", "2x20x40, 2 streams at once, tiles of 16")
        for verb in ("encode", "decode")
    ]
    frames = {"17x128x128": 17, "2x20x40, 2 streams at once, tiles of 16": 4}
    for row in ours:
        assert row["frames_per_s"] == pytest.approx(1000 * frames[row["case"]] / row["ms"])
    recorded = {(row["tokenizer"].split()[0], row["verb"]): row for row in rows if row["source"] == "recorded"}
    assert recorded["Cosmos", "decode"]["frames_per_s"] == pytest.approx(5.0, abs=0.05)
    assert recorded["VidTok", "encode"]["frames_per_s"] == pytest.approx(0.7, abs=0.05)
    assert json.loads(out.with_suffix(".json").read_text()) == rows
    assert out.with_suffix(".txt").read_text().startswith("# mini: 6.4 M parameters, stride 4x8x8")
    assert cli.main(["bench", "tokenizer", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_an_unknown_preset_names_the_known(capsys):
    assert cli.main(["bench", "tokenizer", "-c", "bse"]) == 2
    assert "one of base, handwriting, large, mini, robot, small" in capsys.readouterr().err


def test_writing_is_timed_beside_transformers_own(capsys, tmp_path, monkeypatch):
    import json

    from tasks import cli, generation_speed

    monkeypatch.setattr(generation_speed, "WAYS", generation_speed.WAYS[:2] + generation_speed.WAYS[-1:])
    assert cli.main(["bench", "generate", "--model", "mini", "--out", str(tmp_path / "speed"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert json.loads((tmp_path / "speed.json").read_text()) == rows
    by_name = {row["decoder"]: row for row in rows if row["batch"] == 1 and row["detail"] == 5}
    assert by_name["raster"]["passes"] == by_name["raster"]["tokens"] == 98
    assert by_name["next-level"]["passes"] == 10 and by_name["transformers' generate"]["ratio"] == 1
    assert by_name["next-level"]["ms"] < by_name["raster"]["ms"] / 3
    assert by_name["next-level"]["ratio"] > 2
