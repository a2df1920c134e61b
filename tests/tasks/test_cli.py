"""The command line from the outside: what goes to stdout, what to stderr, and with which exit code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from made_clips import write_timed

from pyramid.data.video import probe, read_clip
from pyramid.tokenizer import PyramidTokenizer
from tasks import cli
from tasks.judge import Judge

VERBS = [
    "train",
    "data",
    "reconstruct",
    "tokenize",
    "caption",
    "ask",
    "classify",
    "index",
    "search",
    "incontext",
    "words",
    "generate",
    "edit",
    "storyboard",
    "info",
    "doctor",
    "evaluate",
    "bench",
    "quickstart",
]


def run(capsys, *args) -> tuple[int, list[str], list[str]]:
    capsys.readouterr()
    code = cli.main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(capsys, verb):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert any("Usage" in line for line in out)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["reconstrukt"], "No such command"),
        (["reconstruct"], "Missing argument"),
        (["reconstruct", "x.mp4", "--detial", "3"], "No such option"),
        (["reconstruct", "nowhere.mp4"], "nowhere.mp4: expected a file, a folder or a glob, found nothing"),
        (["info", "/nowhere/model"], "/nowhere/model"),
        (["train", "tokenizer", "model.dmi=3"], "model.dmi.*Did you mean: 'dim'"),
        (["train", "tokenizer", "-c", "nowhere.yaml"], "nowhere.yaml: expected a YAML file"),
        (["train", "tokenizer", "--device", "abacus"], "expected auto, cpu, cuda or mps, got 'abacus'"),
        (["train", "tokenizer", "run.batch_size=0"], "run: batch_size must be at least 1, got 0"),
        (["train", "tokenizer", "--nope"], r"\(see pyramid train tokenizer --help\)"),
        (["train", "tokenzier"], r"\(see pyramid train --help\)"),
        (["bench", "ops", "--device", "meta"], "--device: expected cpu, cuda, cuda:N or mps, got 'meta'"),
        (["info", "runs/no+where"], "runs/no.where: expected .*a folder or a hub id, found no folder"),
        (["generate", "x", "-m", "/nowhere", "--seed", 2**32], "--seed.* 4294967295"),
        (
            ["generate", "x", "-m", "/nowhere", "--seed", 2**32 - 1, "-n", 2],
            "--seed: expected at most 4294967294 for 2",
        ),
        (["generate", "x", "-m", "/nowhere", "--guidance", "nan"], "guidance"),
        (["generate", "x", "-m", "/nowhere", "--temperature", "inf"], "temperature must be finite"),
        (["generate", "x", "-m", "/nowhere", "--top-p", "0"], "top_p must lie in"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_2(capsys, args, message):
    code, out, err = run(capsys, *args)
    assert code == 2
    assert out == []
    assert len(err) == 1
    assert err[0].startswith("pyramid ")
    assert re.search(message, err[0]), err[0]


def test_our_fault_is_exit_1_and_the_traceback_comes_with_debug(capsys, monkeypatch):
    def broken(*_):
        return torch.zeros(2) @ torch.zeros(3)

    monkeypatch.setattr("tasks.info.describe_model", broken)
    code, out, err = run(capsys, "info")
    assert (code, out, len(err)) == (1, [], 1)
    assert "our fault: RuntimeError" in err[0]
    code, _, err = run(capsys, "info", "--debug")
    assert code == 1
    assert "Traceback" in err[0]


@pytest.mark.parametrize("args", [["doctor"], ["train", "tokenizer", "--help"]])
def test_a_reader_that_has_seen_enough_is_no_error(args):
    command = [sys.executable, "-m", "tasks.cli", *args]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_print_config_is_yaml_that_loads_back(capsys, tmp_path):
    code, out, _ = run(capsys, "train", "tokenizer", "run.seed=7", "--print-config", "--out", tmp_path / "never")
    assert code == 0
    path = tmp_path / "c.yaml"
    path.write_text("\n".join(out))
    code, again, _ = run(capsys, "train", "tokenizer", "-c", path, "--print-config")
    assert again == out
    assert not (tmp_path / "never").exists()
    code, out, _ = run(capsys, "train", "tokenizer", "--seed", "7", "--print-config", "--json")
    assert json.loads(out[0])["run"]["seed"] == 7


def test_doctor_always_ends_well_and_speaks_json(capsys):
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 0
    findings = {record["name"]: record for record in map(json.loads, out)}
    assert findings["torch"]["found"] == torch.__version__
    assert {"python", "extension", "shipped models", "video"} <= set(findings)
    assert all(record["advice"] for record in findings.values() if not record["ok"])


def test_reconstruct_writes_a_clip_a_detail_and_json_alone_on_stdout(capsys, model, clip, tmp_path):
    out = tmp_path / "out"
    code, lines, _ = run(capsys, "reconstruct", clip, "--model", model, "--out", out, "--detail", "1,3-4", "--json")
    records = [json.loads(line) for line in lines]
    assert code == 0
    assert [record["detail"] for record in records] == [1, 3, 4]
    assert sorted(path.name for path in out.iterdir()) == [f"clip one.detail-{k}.mp4" for k in (1, 3, 4)]
    assert records[0]["tokens"] < records[1]["tokens"] < records[2]["tokens"]
    info = probe(records[2]["output"])
    assert (info.width, info.height, info.frames, info.fps) == (40, 24, 6, 12)


def test_reconstruct_is_what_the_library_makes_of_the_whole_clip(capsys, model, clip, tmp_path):
    from pyramid.data.transforms import from_uint8, to_uint8

    run(capsys, "reconstruct", clip, "--model", model, "--out", tmp_path / "x.mkv", "--detail", "2")
    tokenizer = PyramidTokenizer.from_pretrained(f"{model}/tokenizer")
    video = tokenizer.decode(tokenizer.encode(read_clip(clip)[None]), detail=2)
    assert torch.equal(read_clip(tmp_path / "x.mkv"), from_uint8(to_uint8(video[0])))


def test_reconstruct_makes_one_sheet_as_png(capsys, model, clip, tmp_path):
    code, lines, _ = run(capsys, "reconstruct", clip, "--model", model, "--out", tmp_path / "sheet.png")
    assert code == 0
    assert len(lines) == 5
    assert probe(tmp_path / "sheet.png").frames == 1


def test_nothing_is_overwritten_unasked(capsys, model, clip, tmp_path):
    out = tmp_path / "x.mp4"
    out.write_text("mine")
    code, lines, err = run(capsys, "reconstruct", clip, "--model", model, "--out", out, "-d", "1")
    assert (code, lines) == (2, [])
    assert err[-1].endswith("exists already; give another --out, or --overwrite")
    assert out.read_text() == "mine"
    assert run(capsys, "reconstruct", clip, "--model", model, "--out", out, "-d", "1", "--overwrite")[0] == 0
    assert probe(out).frames == 6


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_an_output_is_never_an_input(capsys, model, clip, link):
    before, out = clip.read_bytes(), clip
    if link is not None:
        out = clip.with_name("other.mp4")
        link(clip, out)
    for inputs, target in ((clip, out), (clip.parent, clip.parent)):
        args = ["reconstruct", inputs, "--model", model, "--out", target, "-d", "1", "--overwrite"]
        code, lines, err = run(capsys, *args)
        assert (code, lines) == (2, [])
        assert err[-1].endswith("expected an output that is not an input too; give another --out")
    assert clip.read_bytes() == before


def test_what_reconstruct_does_not_keep_is_said(capsys, model, tmp_path, monkeypatch):
    source, out = tmp_path / "x.mp4", tmp_path / "y.mp4"
    write_timed(source, [0, 40, 80, 1040, 1080], sample_aspect_ratio=Fraction(4, 3))
    info = dataclasses.replace(probe(source), has_audio=True)
    monkeypatch.setattr("pyramid.data.frames.probe", lambda path: info)
    code, _, err = run(capsys, "reconstruct", source, "--model", model, "--out", out, "-d", "1")
    assert code == 0
    assert err[0].startswith(f"{source}: its frame rate varies; the frames are written at ")
    assert err[1] == f"{source}: its sound is not kept"
    monkeypatch.undo()
    assert (info.pixel_aspect, info.width) == (pytest.approx(4 / 3), 64)
    assert (probe(out).width, probe(out).height, probe(out).frames) == (86, 48, 5)  # 85.3, made even


def test_a_broken_file_in_a_folder_is_one_line_and_the_others_go_on(capsys, model, clip, tmp_path):
    (clip.parent / "broken.mp4").write_bytes(b"no video")
    (clip.parent / "gone.mp4").symlink_to("nowhere")
    args = ["reconstruct", clip.parent, "--model", model, "--out", tmp_path / "out", "-d", "1"]
    code, lines, err = run(capsys, *args)
    assert code == 2
    assert len(lines) == 1
    assert len(err) == 2
    assert "broken.mp4" in err[0]
    assert "gone.mp4" in err[1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip one.mp4"]


def test_names_of_outputs_never_meet(capsys, model, clip, tmp_path):
    clip.with_suffix(".mov").write_bytes(clip.read_bytes())
    code, _, _ = run(capsys, "reconstruct", clip.parent, "--model", model, "--out", tmp_path / "out", "-d", "1")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip one.mov.mp4", "clip one.mp4.mp4"]
    code, _, err = run(capsys, "reconstruct", clip.parent, "--model", model, "--out", tmp_path / "one.mp4")
    assert code == 2
    assert "expected a folder for 2 inputs" in err[0]


@pytest.mark.parametrize("detail", ["0", "6", "x", "3-1", "3-1,2", "1-100000000000", ""])
def test_a_wrong_detail_names_the_range(capsys, model, clip, detail):
    code, _, err = run(capsys, "reconstruct", clip, "--model", model, "--detail", detail)
    assert code == 2
    assert "numbers from 1 to 5" in err[-1]


def test_info_describes_models_clips_and_tokens(capsys, model, clip, tmp_path):
    code, lines, _ = run(capsys, "info", model, "--json")
    record = json.loads(lines[0])
    assert code == 0
    assert [level["codebook"] for level in record["tokenizer"]["levels"]].count("words") >= 1
    assert record["tokenizer"]["tokens"] == sum(level["tokens"] for level in record["tokenizer"]["levels"])
    weights = Path(model, "lm", "backbone", "model.safetensors").read_bytes()
    assert record["parts"]["lm"]["sha256"]["backbone/model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert record["parts"]["lm"]["megabytes"] > len(weights) / 1e6
    code, lines, _ = run(capsys, "info", clip, "--json")
    assert json.loads(lines[0])["width"] == 40
    assert "has_audio: no" in run(capsys, "info", clip)[1]
    tokenizer = PyramidTokenizer.from_pretrained(f"{model}/tokenizer")
    tokenizer.encode(torch.zeros(2, 3, 9, 32, 32)).save(tmp_path / "t.safetensors")
    code, lines, _ = run(capsys, "info", tmp_path / "t.safetensors", "--json")
    assert json.loads(lines[0])["clips"] == 2


def test_training_writes_a_model_and_refuses_to_write_over_it(capsys, clip, tmp_path):
    small = ["model.channels=[8,16]", "model.depths=[1,1]", "model.dim=32", "model.depth=1", "run.batch_size=2"]
    args = ["train", "tokenizer", *small, "run.max_steps=2", "run.val_batches=1", "--out", tmp_path / "t", "--json"]
    code, lines, err = run(capsys, *args)
    assert code == 0, err
    assert json.loads(lines[-1])["step"] == 2
    assert PyramidTokenizer.from_pretrained(tmp_path / "t").num_levels == 5
    code, lines, err = run(capsys, *args)
    assert (code, lines) == (2, [])
    assert "not empty" in err[-1]


def test_caption_says_what_it_read(capsys, model, clip):
    code, lines, _ = run(capsys, "caption", clip, clip, "--model", model, "--words", "--json")
    (record,) = map(json.loads, lines)  # named twice, captioned once
    assert code == 0
    assert 0 < record["tokens_read"] < record["tokens_total"]
    assert (record["frames"], record["detail"]) == (6, 2)
    assert [len(level) for level in record["words"][1]] == [1, 4]
    code, lines, err = run(capsys, "caption", clip, "--model", model, "--detail", "1", "--words")
    assert lines[0].startswith(f"{clip}: ")
    assert lines[1].startswith("  chunk 0, level 1: ")
    assert "at detail 1 of 5" in err[0]


def test_quickstart_refuses_a_judge_of_other_clips_at_once(capsys, model, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(model, folder)
    Judge(5, 16).save(folder / "judge")
    code, lines, err = run(capsys, "quickstart", "--model", folder, "--out", out)
    assert (code, lines) == (2, [])
    wanted = "expected a judge of 9 frames of 32x32, which the model makes, got one of 5 frames of 16x16"
    assert err[-1] == f"pyramid quickstart: {folder}/judge: {wanted}"
    code, _, err = run(capsys, "quickstart", "--model", folder, "--out", folder, "--overwrite")
    assert code == 2
    assert "expected a folder apart from" in err[-1]
    assert not out.exists()


def test_a_damaged_model_is_named(capsys, model, clip, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(model, folder)
    weights = folder / "tokenizer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, err = run(capsys, "reconstruct", clip, "--model", folder, "--out", tmp_path / "x.mp4")
    assert code == 2
    assert f"{folder}/tokenizer: expected a model that this version can read" in err[-1]
    code, _, err = run(capsys, "caption", clip, "--model", f"{model}/tokenizer")
    assert code == 2
    assert "expected a pyramid.lm" in err[-1]
