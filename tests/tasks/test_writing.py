"""The verbs that write clips - generate, edit, storyboard - from the outside."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from lm.editing import Box
from pyramid.data.video import probe, read_clip, write_video
from tasks import cli


def run(capsys, *args) -> tuple[int, list[str], list[str]]:
    capsys.readouterr()
    code = cli.main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


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
        (["a ring", "--order", "halton", "--decoder", "raster"], "--order: expected --decoder masked"),
        (["a ring", "--passes", "2", "--decoder", "next-level"], "--passes: expected --decoder masked"),
        (["a ring", "--negative", "red", "--guidance", "1"], "--negative: expected --guidance above 1"),
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
    plan = _Plan.of(tmp_path / "small.mkv", tmp_path / "out.mkv", 32, 8, [], bring_up=True)
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


def test_a_shot_that_no_window_begins_in_is_refused(capsys, model, tmp_path):
    args = ["storyboard", "a ring", "a disc", "a star", "--model", model, "--out", tmp_path / "a.mkv"]
    code, _, err = run(capsys, *args, "--seconds", "1.25,0.5,2")  # windows of 9 frames, then of 8, at 8 a second
    assert code == 2 and "of at least 1 s" in err[-1] and "for 'a disc', got 1.25 to 1.75 s" in err[-1]
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_kept_is_said(capsys, model, tmp_path):
    frames = [np.full((32, 32, 3), 9 * index, dtype=np.uint8) for index in range(12)]
    write_video(tmp_path / "fast.mkv", frames, fps=100)
    out = tmp_path / "out.gif"
    code, lines, _ = run(capsys, "edit", tmp_path / "fast.mkv", "--extend", "0.1", "--model", model, "--out", out)
    assert code == 0 and lines and probe(out).fps == 50  # more than a .gif takes: every other frame
    args = ["edit", tmp_path / "fast.mkv", "--outpaint", "1:1000", "--model", model, "--out", out, "--overwrite"]
    code, _, err = run(capsys, *args)
    assert code == 2 and "expected a frame of at most 16384 pixels a side, got 32x32000" in err[-1]


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
