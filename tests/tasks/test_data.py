"""`pyramid data omniglot`: the folder it leaves, what it says, and that training reads it."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_strokes import LINE, member, small_set, text, write_zip

from pyramid.data.folder import FolderDataset
from pyramid.data.ink import InkConfig, render_ink
from pyramid.data.sources import DataConfig, make_datasets
from pyramid.data.video import probe, read_clip, to_uint8
from pyramid.files import filling
from tasks import cli
from tasks.options import parse_size

DATA = Path(__file__).parents[2] / "../shared/data/omniglot"


def run(capsys, *args) -> tuple[int, list[str], list[str]]:
    capsys.readouterr()
    code = cli.main(["data", "omniglot", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf8").splitlines()]


def test_a_folder_of_clips_with_captions_labels_and_splits(capsys, tmp_path):
    archive, out = small_set(tmp_path / "a.zip"), tmp_path / "made" / "set"
    code, said, _ = run(capsys, archive, "--out", out, "--size", "48x64", "--frames", 9, "--fps", 12)
    assert code == 0
    assert said[0].startswith(f"{out}: 6 clips (4 train, 2 val) of 2 characters of 1 alphabets, ")
    rows = rows_of(out)
    assert rows[-1] == {
        "file_name": "val/Greek/character23/17.mp4",
        "caption": "writing Greek character 23 in two strokes",
        "label": "Greek/character23",
        "split": "val",
        "alphabet": "Greek",
        "character": 23,
        "drawer": 17,
        "strokes": 2,
        "seconds": 2.0,
        "ink": rows[-1]["ink"],
        "paper": rows[-1]["paper"],
    }
    assert {row["drawer"]: row["split"] for row in rows} == {1: "train", 16: "train", 17: "val"}
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {"metadata.jsonl", *(row["file_name"] for row in rows)}
    info = probe(out / rows[0]["file_name"])
    assert (info.height, info.width, info.frames, info.fps) == (48, 64, 9, 12)


def test_training_reads_it(capsys, tmp_path):
    run(capsys, small_set(tmp_path / "a.zip"), "--out", tmp_path / "set")
    train, val = make_datasets(DataConfig(source="folder", path=str(tmp_path / "set")), 17, (64, 64), 8.0)
    assert (len(train), len(val)) == (4, 2)
    item = val[0]
    assert item["video"].shape == (3, 17, 64, 64) and item["num_valid"] == 17
    assert (item["caption"], item["label"]) == ("writing Greek character 1 in one stroke", "Greek/character01")


def test_the_look_depends_on_seed_drawing_and_variant_alone(capsys, tmp_path):
    archive = small_set(tmp_path / "a.zip")
    same = ["--suffix", "mkv", "--frames", 5, "--size", 32, "--seed", 7]
    run(capsys, archive, *same, "--out", tmp_path / "one", "--variants", 2, "--workers", 0)
    run(capsys, archive, *same, "--out", tmp_path / "two", "--workers", 2)
    twice, once = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert len(twice) == 2 * len(once) == 12
    for first, second, alone in zip(twice[::2], twice[1::2], once, strict=True):
        assert first["file_name"].endswith(".v1.mkv") and second["file_name"].endswith(".v2.mkv")
        clips = [to_uint8(read_clip(tmp_path / "one" / row["file_name"])) for row in (first, second)]
        clips.append(to_uint8(read_clip(tmp_path / "two" / alone["file_name"])))
        assert (clips[0] == clips[2]).all() and (clips[0] != clips[1]).any()
        assert first == {**alone, "file_name": first["file_name"]}


def test_plain_is_black_on_white_frame_by_frame(capsys, tmp_path):
    archive = write_zip(tmp_path / "a.zip", {member("Greek", 1, 1): text(LINE)})
    assert run(capsys, archive, "--plain", "--suffix", ".mkv", "--out", tmp_path / "set")[0] == 0
    written = to_uint8(read_clip(tmp_path / "set" / "train/Greek/character01/01.mkv")).numpy()
    _, frames = render_ink([np.array(LINE)], InkConfig(plain=True), np.random.default_rng(0))
    assert (written == np.stack(list(frames))).all()
    assert written[0, 0, 0].tolist() == [255] * 3 and written.min() < 5


def test_a_broken_drawing_is_one_line_and_the_others_go_on(capsys, tmp_path):
    members = {member("Greek", 1, drawer): text(LINE) for drawer in (1, 2, 18)}
    archive = write_zip(tmp_path / "a.zip", {**members, member("Greek", 2, 1): "START\n1,2\nBREAK\n"})
    for workers in (0, 1):
        out = tmp_path / f"set{workers}"
        code, said, faults = run(capsys, archive, "--out", out, "--json", "--workers", workers)
        assert code == 2
        where = f"{archive}, {member('Greek', 2, 1)}"
        message = f"{where}, line 2: expected x,y,t or BREAK after a stroke, got '1,2'"
        assert faults == [f"pyramid data omniglot: {message}"]
        broken, record = map(json.loads, said)
        assert broken == {"input": where, "error": message}
        assert (record["clips"], record["broken"], record["train"], record["val"]) == (3, 1, 2, 1)
        assert len(rows_of(out)) == len(FolderDataset(out, 1, (64, 64))) == 3
        assert not (out / "train/Greek/character02").exists()


def test_where_nothing_can_be_read_nothing_is_written(capsys, tmp_path):
    archive = write_zip(tmp_path / "a.zip", {member("Greek", 1, 1): "START\n"})
    code, said, faults = run(capsys, archive, "--out", tmp_path / "new" / "set")
    assert (code, said, len(faults)) == (2, [], 2)
    assert faults[1].endswith("a.zip: expected at least one drawing that can be read, got none")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.zip"], "nowhere.zip: expected a zip of Omniglot's strokes, found nothing"),
        (["a.zip", "nowhere.zip"], "nowhere.zip: expected a zip of Omniglot's strokes, found nothing"),
        (["a.zip", "--size", "64x"], "--size: expected a height, or height x width such as 64x112, got '64x'"),
        (["a.zip", "--size", "8"], "InkConfig: height and width must be at least 16, got 8x8"),
        (["a.zip", "--size", "99999"], "--size: expected at most 134217728 pixels, got 99999x99999"),
        (["a.zip", "--fps", "0"], "--fps: expected from 0.01 to 1000, got 0.0"),
        (["a.zip", "--fps", "nan"], "--fps: expected from 0.01 to 1000, got nan"),
        (["a.zip", "--fps", "60", "--suffix", "gif"], "--fps: expected from 0.01 to 50, got 60.0"),
        (["a.zip", "--suffix", ".png"], "--suffix: expected a format of clips, got .png"),
        (["a.zip", "--suffix", ".doc"], "clip.doc: expected a name that ends in .mp4"),
        (["a.zip", "--plain", "--variants", "2"], "--variants: expected 1 with --plain"),
        (["a.zip", "--max-pause", "0"], "max_pause must be positive and finite, got 0.0"),
        (["a.zip", "--out", "."], ".: expected a folder apart from a.zip, which is read"),
        (["a.zip", "--out", "full"], "full: exists already and is not empty; give another --out, or --overwrite"),
    ],
)
def test_what_the_user_can_mend_is_one_line_before_any_work(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    small_set(Path("a.zip"))
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    code, said, faults = run(capsys, "--out", "out", *args)
    assert (code, said, len(faults)) == (2, [], 1)
    assert message in faults[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "full"]


def test_overwrite_replaces_what_it_makes_and_leaves_the_rest(capsys, tmp_path):
    out = tmp_path / "set"
    run(capsys, small_set(tmp_path / "a.zip", "Greek"), "--out", out)
    (out / "notes.txt").write_text("mine")
    archive = small_set(tmp_path / "b.zip", "Latin", drawers=(1, 17))
    assert run(capsys, archive, "--out", out)[0] == 2
    assert {row["alphabet"] for row in rows_of(out)} == {"Greek"}
    assert run(capsys, archive, "--out", out, "--overwrite")[0] == 0
    assert {row["alphabet"] for row in rows_of(out)} == {"Latin"}
    assert sorted(path.name for path in out.iterdir()) == ["metadata.jsonl", "notes.txt", "train", "val"]
    assert [path.name for path in (out / "train").iterdir()] == ["Latin"]


def test_a_run_that_stops_half_way_leaves_nothing(capsys, tmp_path, monkeypatch):
    archive, out = small_set(tmp_path / "a.zip"), tmp_path / "set"
    run(capsys, archive, "--out", out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    def full(path, frames, fps):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pyramid.data.video.write_video", full)
    code, _, faults = run(capsys, archive, "--out", out, "--overwrite", "--workers", 0)
    assert code == 2 and "No space left on device" in faults[-1]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert run(capsys, archive, "--out", tmp_path / "a" / "b", "--workers", 0)[0] == 2
    assert not (tmp_path / "a").exists()


def test_filling_moves_all_at_the_end_or_nothing(tmp_path):
    folder = tmp_path / "a" / "b"
    with filling(folder, "index") as part:
        (part / "clips").mkdir()
        (part / "clips" / "one").write_text("1")
        (part / "index").write_text("one")
        assert [path.name.startswith(".") for path in folder.iterdir()] == [True]
    with pytest.raises(RuntimeError), filling(folder, "index") as part:
        (part / "index").write_text("two")
        raise RuntimeError
    assert (folder / "index").read_text() == "one"
    assert sorted(path.name for path in folder.iterdir()) == ["clips", "index"]


@pytest.mark.parametrize(("given", "size"), [("64", (64, 64)), ("64x112", (64, 112)), ("48X32", (48, 32))])
def test_sizes(given, size):
    assert parse_size(given) == size


@pytest.mark.parametrize("given", ["", "x", "0", "64x0", "-1", "1x2x3", "64.5", "\u0664"])
def test_what_is_no_size_is_refused(given):
    with pytest.raises(ValueError, match="--size: expected a height"):
        parse_size(given)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_real_handwriting(capsys, tmp_path):
    """A tenth of one real zip, so that it takes seconds: everything is read, each drawer is in one split."""
    source = DATA / "strokes_background_small2.zip"
    archive = tmp_path / "some.zip"
    with zipfile.ZipFile(source) as whole:
        names = [name for name in whole.namelist() if "/character02/" in name or "/character11/" in name]
        write_zip(archive, {name: whole.read(name) for name in names if name.endswith(".txt")})
    code, said, _ = run(capsys, archive, "--out", tmp_path / "set", "--json", "--workers", 0)
    assert code == 0
    record = json.loads(said[-1])
    assert (record["clips"], record["train"], record["val"]) == (200, 160, 40)
    assert (record["alphabets"], record["characters"], record["broken"]) == (5, 10, 0)
    rows = rows_of(tmp_path / "set")
    assert Counter(row["drawer"] for row in rows) == dict.fromkeys(range(1, 21), 10)
    assert all((row["drawer"] <= 16) == (row["split"] == "train") for row in rows)
    data = FolderDataset(tmp_path / "set", 17, (64, 64), split="val")
    for index in range(0, 40, 8):
        video = data[index]["video"]
        changed = (video - video[:, :1]).abs().amax(0).flatten(1).gt(0.5).sum(1)
        assert changed[0] == 0 and changed[-1] > 20  # an empty sheet but for the first touch, then a character
        assert changed[-3:].float().std() <= 2
