"""The command line from the outside: what goes to stdout, what to stderr, and with which exit code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from made_clips import write_timed

from lm.backbone import LMConfig, make_backbone
from lm.editing import Box
from lm.model import PyramidLM
from lm.vocabulary import train_text_tokenizer
from pyramid.data.video import probe, read_clip, write_video
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig
from tasks import cli
from tasks.judge import Judge

VERBS = [
    "train",
    "data",
    "reconstruct",
    "caption",
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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random model: what it makes is noise, but all of it is there."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = TokenizerConfig(channels=(8, 16), depths=(1, 1), dim=32, depth=1)
    tokenizer = PyramidTokenizer(config)
    tokenizer.save_pretrained(folder / "tokenizer")
    small = LMConfig(dim=32, num_layers=1, num_heads=2, mlp=32, text_size=300, max_text=8)
    text = train_text_tokenizer(["a red star moves left"], small.text_size)
    PyramidLM(small, tokenizer, text, make_backbone(small, len(text))).save_pretrained(folder / "lm")
    return str(folder)


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "in" / "clip one.mp4"
    path.parent.mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (6, 24, 40, 3), dtype=np.uint8)
    write_video(path, list(frames), fps=12)
    return path


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


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_generate_writes_a_clip_a_detail_or_a_sheet(capsys, model, tmp_path, suffix):
    out = tmp_path / f"clip{suffix}"
    args = ["generate", "a red star moves left", "a disc", "--detail", "1,5", "--model", model, "--out", out, "--json"]
    code, lines, _ = run(capsys, *args)
    records = [json.loads(line) for line in lines]
    names = {path.name for path in tmp_path.iterdir()}
    assert code == 0
    assert [(record["detail"], record["seed"]) for record in records] == [(1, 0), (5, 0), (1, 1), (5, 1)]
    if suffix == ".png":
        assert names == {"clip.1.png", "clip.2.png"}
    else:
        assert names == {f"clip.{i}.detail-{k}{suffix}" for i in (1, 2) for k in (1, 5)}
    assert all(probe(record["output"]).width > 0 for record in records)


def test_the_same_seed_gives_the_same_clip(capsys, model, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        args = ["generate", "a ring", "--model", model, "--out", tmp_path / f"{name}.mkv", "--seed", seed]
        assert run(capsys, *args)[0] == 0
    same, again, other = (read_clip(tmp_path / f"{name}.mkv") for name in "abc")
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a ring", "--out", "clip"], "got no suffix"),
        (["a ring", "--out", "new/clip.xyz"], "new/clip.xyz: expected a name that ends in .mp4"),
        ([" "], "expected a few words"),
        (["a ring", "--detail", "9"], "numbers from 1 to 5"),
        (["a ring", "--top-p", "2"], "top-p"),
    ],
)
def test_generate_refuses_in_one_line(capsys, model, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    code, lines, err = run(capsys, "generate", *args, "--model", model)
    assert (code, lines) == (2, [])
    assert message in err[-1]
    assert list(tmp_path.iterdir()) == []


def test_generate_at_any_length_and_size(capsys, model, tmp_path):
    for frames, size, out in ((1, "32", "a.png"), (20, "24x40", "b.mkv"), (9, "32", "c.mkv")):
        args = ["generate", "a ring", "--frames", frames, "--size", size, "--model", model, "--out", tmp_path / out]
        assert run(capsys, *args, "--decoder", "next-level", "--json")[0] == 0
    assert read_clip(tmp_path / "b.mkv").shape == (3, 20, 24, 40)
    assert read_clip(tmp_path / "c.mkv").shape == (3, 9, 32, 32)


def test_a_picture_of_one_frame_is_that_frame(capsys, model, square, tmp_path):
    args = ["generate", "a ring", "--frames", 1, "--model", model, "--out", tmp_path / "a.png"]
    assert run(capsys, *args)[0] == 0 and read_clip(tmp_path / "a.png").shape == (3, 1, 32, 32)
    out = tmp_path / "b.png"
    assert run(capsys, "edit", tmp_path / "a.png", "--outpaint", "2:1", "--model", model, "--out", out)[0] == 0
    assert torch.equal(read_clip(out)[..., 16:48], read_clip(tmp_path / "a.png"))


def test_a_hole_of_a_clip_that_is_brought_up_is_where_it_was(capsys, model, tmp_path):
    from tasks.edit import _Plan, _scaled

    write_video(tmp_path / "small.mkv", [np.zeros((16, 16, 3), dtype=np.uint8)] * 3, fps=8)
    plan = _Plan.of(tmp_path / "small.mkv", 32, [], bring_up=True)
    assert _scaled(Box(12, 12, 4, 4), plan.file, plan.work) == Box(24, 24, 8, 8)
    args = ["edit", tmp_path / "small.mkv", "--upscale", "--inpaint", "12,12,8,8", "--model", model]
    code, _, err = run(capsys, *args, "--out", tmp_path / "out.mkv")
    assert code == 2 and "expected a box within 16x16 pixels" in err[-1]


def test_a_model_that_cannot_go_on_says_so_first(capsys, tmp_path):
    for args in (["generate", "a ring", "--frames", 30], ["storyboard", "a ring", "a disc"]):
        code, _, err = run(capsys, *args, "--model", "mini", "--out", tmp_path / "out.mkv")
        assert code == 2 and "this model knows generate, caption; got 'animate'" in err[-1]
        assert list(tmp_path.iterdir()) == []


def test_a_preview_shows_every_level_as_it_comes(capsys, model, tmp_path):
    args = ["generate", "a ring", "--model", model, "--out", tmp_path / "a.mkv", "--preview", tmp_path / "p"]
    assert run(capsys, *args)[0] == 0
    names = [path.name for path in sorted((tmp_path / "p").iterdir(), key=lambda path: path.stat().st_mtime_ns)]
    assert names == [f"window-1.chunk-{c}.level-{k}.png" for c in (1, 2) for k in range(1, 6)]


def test_a_storyboard_is_one_clip(capsys, model, tmp_path):
    args = ["storyboard", "a ring", "a disc", "--seconds", "2,1", "--model", model, "--out", tmp_path / "a.mkv"]
    code, lines, _ = run(capsys, *args, "--json")
    assert code == 0 and json.loads(lines[0])["shots"] == [16, 8]
    assert read_clip(tmp_path / "a.mkv").shape[1] == 24


@pytest.fixture
def square(tmp_path):
    """A clip at the model's own size, kept without loss."""
    path = tmp_path / "square.mkv"
    frames = np.random.default_rng(1).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
    write_video(path, list(frames), fps=8)
    return path


@pytest.mark.parametrize("large", [False, True], ids=["at the model's size", "larger"])
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        (["--inpaint", "4,6,10,12"], (11, 32, 32)),
        (["--outpaint", "9:16"], (11, 58, 32)),
        (["--extend", "1.5"], (23, 32, 32)),
        (["--inpaint", "0,0,8,8", "--outpaint", "2:1", "--extend", "0.5"], (15, 32, 64)),
    ],
)
def test_edits_leave_known_pixels_alone(capsys, model, square, tmp_path, options, shape, large):
    source = read_clip(square)
    scale = 1
    if large:
        scale = 2
        square = tmp_path / "large.mkv"
        write_video(square, source.repeat_interleave(2, 2).repeat_interleave(2, 3), fps=8)
        source = read_clip(square)
        options = [",".join(str(2 * int(p)) for p in o.split(",")) if "," in o else o for o in options]
    out = tmp_path / "out.mkv"
    code, lines, err = run(capsys, "edit", square, *options, "--model", model, "--out", out, "--json")
    assert code == 0, err
    result = read_clip(out)
    frames, height, width = shape
    if "--outpaint" in options:
        height, width = (scale * side for side in (height, width))
        if width == 32 * scale:
            height = 2 * math.ceil(32 * scale * 16 / 9 / 2)
    else:
        height, width = scale * height, scale * width
    assert result.shape == (3, frames, height, width)
    known = torch.ones(32 * scale, 32 * scale, dtype=torch.bool)
    if "--inpaint" in options:
        x, y, w, h = map(int, options[options.index("--inpaint") + 1].split(","))
        known[y : y + h, x : x + w] = False
    top, left = (height - 32 * scale) // 2, (width - 32 * scale) // 2
    inside = result[:, :11, top : top + 32 * scale, left : left + 32 * scale]
    assert torch.equal(inside[..., known], source[..., known])
    if "--inpaint" in options:
        assert not torch.equal(inside[..., ~known], source[..., ~known])
    assert json.loads(lines[0])["tasks"] == [
        name for name in ("inpaint", "outpaint", "extend") if f"--{name}" in options
    ]


def test_a_preview_of_boxes_of_many_sizes(capsys, model, square, tmp_path):
    args = ["edit", square, "--stylize", "--outpaint", "9:16,16:9", "--model", model, "--out", tmp_path / "o.mkv"]
    assert run(capsys, *args, "--preview", tmp_path / "p")[0] == 0
    assert len(list((tmp_path / "p").iterdir())) > 10


def test_to_portrait_and_back(capsys, model, square, tmp_path):
    out = tmp_path / "out.mkv"
    assert run(capsys, "edit", square, "--outpaint", "9:16,16:9", "--model", model, "--out", out)[0] == 0
    result = read_clip(out)
    assert result.shape == (3, 11, 58, 104)
    assert torch.equal(result[:, :, 13:45, 36:68], read_clip(square))


def test_a_clip_is_restyled_refined_and_upscaled(capsys, model, square, clip, tmp_path):
    for options in (["--stylize", "--prompt", "a red star"], ["--refine", "2"], ["--stylize", "--refine", "3"]):
        out = tmp_path / "out.mkv"
        assert run(capsys, "edit", square, *options, "--model", model, "--out", out, "--overwrite")[0] == 0
        assert read_clip(out).shape == (3, 11, 32, 32)
    assert run(capsys, "edit", clip, "--upscale", "--model", model, "--out", out, "--overwrite")[0] == 0  # 40x24
    assert read_clip(out).shape == (3, 6, 32, 53)
    code, _, err = run(capsys, "edit", square, "--upscale", "--model", model, "--out", out, "--overwrite")
    assert code == 2 and "expected a clip of fewer than 32 pixels on its shorter side" in err[-1]


def test_from_one_image_to_another_and_from_one_image_on(capsys, model, square, tmp_path):
    frames = [(read_clip(square)[:, i] * 127.5 + 127.5).round().byte().movedim(0, -1).numpy() for i in (0, 5)]
    images = [tmp_path / f"{name}.mkv" for name in "ab"]
    for image, frame in zip(images, frames, strict=True):
        write_video(image, [frame], fps=8)
    out = tmp_path / "out.mkv"
    assert run(capsys, "edit", "--between", *images, "--frames", 7, "--model", model, "--out", out)[0] == 0
    result = read_clip(out)
    assert result.shape == (3, 7, 32, 32)
    assert torch.equal(result[:, 0], read_clip(images[0])[:, 0])
    assert torch.equal(result[:, -1], read_clip(images[1])[:, 0])
    assert run(capsys, "edit", images[0], "--extend", 1, "--model", model, "--out", out, "--overwrite")[0] == 0
    assert read_clip(out).shape[1] == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected something to do"),
        (["--inpaint", "1,2,3"], "expected x,y,width,height"),
        (["--inpaint", "20,20,20,20"], "expected a box within 32x32 pixels, got 20,20,20,20"),
        (["--outpaint", "9x16"], "expected width:height"),
        (["--extend", "-1"], "expected seconds above 0"),
        (["--refine", "5"], "expected fewer than the 5 levels"),
        (["--stylize", "--frames", "5"], "--frames: expected --between"),
        (["--stylize", "--passes", "1,x"], "--passes: expected a number, or one a level"),
        (["--stylize", "--decoder", "beam"], "decoder must be one of"),
    ],
)
def test_edit_refuses_in_one_line(capsys, model, square, tmp_path, options, message):
    code, lines, err = run(capsys, "edit", square, *options, "--model", model, "--out", tmp_path / "new.mkv")
    assert (code, lines) == (2, [])
    assert message in err[-1]
    assert not (tmp_path / "new.mkv").exists()


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
