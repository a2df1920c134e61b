"""`pyramid train tokenizer --gates` and `--check`: what is said, what is written, how it ends."""

import json
import os

import pytest
import tiny_run
import yaml

from tasks import cli

GATES = ["gates.one_psnr=19", "gates.sixteen_psnr=12", "gates.words=0", "data.num_clips=16", "run.max_steps=3"]


@pytest.fixture
def run(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_run.RUN))

    def call(*args):
        code = cli.main(["train", "tokenizer", "-c", str(tmp_path / "tiny.yaml"), *tiny_run.EVERY, *map(str, args)])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return call


def test_gates_then_forecast_then_the_run(run, tmp_path):
    code, lines, notes = run(*GATES, "--gates", "--out", tmp_path / "t", "--json")
    records = [json.loads(line) for line in lines]
    assert code == 0, notes
    assert [record["gate"] for record in records[:3]] == ["input range", "one clip by heart", "sixteen clips by heart"]
    assert records[3]["forecast"]["steps"] == 3 and records[-1]["step"] == 3
    said = [line.removeprefix("train tokenizer: ") for line in notes]
    assert [line.split(":")[0] for line in said[:4]] == ["gate passed"] * 3 + ["forecast"]
    assert (tmp_path / "t" / "model.safetensors").is_file()


def test_check_writes_nothing(run, tmp_path):
    code, lines, notes = run(*GATES, "--check", "--out", tmp_path / "t")
    assert (code, lines) == (0, [])
    assert notes[-1].startswith("train tokenizer: forecast: ") and "3 steps" in notes[-1]
    code, lines, notes = run(*GATES, "--forecast", "--out", tmp_path / "t", "--json")
    assert [list(json.loads(line)) for line in lines] == [["forecast"]] and len(notes) == 1
    assert not (tmp_path / "t").exists()


def test_a_gate_that_is_not_passed_ends_the_verb(run, tmp_path):
    code, lines, notes = run(*GATES, "--gates", "gates.one_psnr=90", "gates.one_steps=2", "--out", tmp_path / "t")
    assert (code, lines) == (2, [])
    assert "gate not passed: one clip by heart: expected at least 90 dB" in notes[-1]
    assert not (tmp_path / "t").exists()


def test_the_first_of_several_processes_claims_the_folder(run, tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "file").touch()
    assert run(*GATES, "--out", tmp_path / "t")[0] == 2
    from tasks.train import _claim

    monkeypatch.setitem(os.environ, "RANK", "1")
    _claim(tiny_run.config(), tmp_path / "t", overwrite=False)
