"""`caption`, `ask` and `classify`: files, folders and windows in; lines, JSON and subtitles out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest

from pyramid.data.video import read_clip, write_video
from tasks import cli
from tasks.models import load_lm
from tasks.reading import Said, windows, write_subtitles


def run(capsys, *args):
    capsys.readouterr()
    code = cli.main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


@pytest.fixture
def folder(tmp_path):
    """Five clips, and a file that is none."""
    inside = tmp_path / "clips"
    inside.mkdir()
    draw = np.random.default_rng(0)
    for number in range(5):
        write_video(inside / f"{number}.mp4", list(draw.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)), fps=8)
    (inside / "2.mp4").write_bytes(b"no video")
    return inside


def test_a_folder_is_read_in_batches_and_a_broken_file_is_a_line(capsys, model, folder):
    code, lines, err = run(capsys, "ask", "why?", folder, "--model", model, "--batch", "3", "--json")
    rows = [json.loads(line) for line in lines]
    assert code == 2 and [row["input"] for row in rows] == [str(folder / f"{i}.mp4") for i in range(5)]
    assert "error" in rows[2] and any("2.mp4" in line for line in err)
    lm = load_lm(model)
    for row in rows[:2] + rows[3:]:
        video = read_clip(row["input"], num_frames=9, size=(32, 32))[None]
        (alone,) = lm.ask(video, "why?")
        assert row["answer"] == alone.text and row["confidence"] == pytest.approx(alone.confidence, abs=2e-4)
        assert row["question"] == "why?" and row["detail"] == 2


def test_a_drawn_caption_hangs_on_its_clip_and_the_seed_alone(capsys, model, folder):
    def drawn(*args):
        _, lines, _ = run(capsys, "caption", folder, "--model", model, "--temperature", "3", "--json", *args)
        return [json.loads(line).get("caption") for line in lines]

    first = drawn("--batch", "5")
    assert first == drawn("--batch", "1") == drawn("--batch", "2") != drawn("--batch", "5", "--seed", "1")
    assert len(set(first)) == 5


def test_half_the_bits_say_about_the_same(capsys, model, folder):
    def shares(*args):
        _, lines, _ = run(capsys, "classify", folder, "--labels", "a,b", "--model", model, "--json", *args)
        return [row["probabilities"]["a"] for row in map(json.loads, lines) if "error" not in row]

    exact, rough = shares(), shares("--dtype", "bfloat16")
    assert len(rough) == 4 and exact != rough == pytest.approx(exact, abs=0.1)


def test_labels_have_probabilities(capsys, model, folder):
    code, lines, _ = run(capsys, "classify", folder / "0.mp4", "--labels", "a, b", "--model", model, "--json")
    (row,) = map(json.loads, lines)
    assert code == 0 and set(row["probabilities"]) == {"a", "b"}
    assert row["confidence"] == max(row["probabilities"].values()) == row["probabilities"][row["label"]]
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=2e-4)
    _, lines, _ = run(capsys, "classify", folder / "0.mp4", "--labels", "a,b", "--model", model)
    assert lines == [f"{folder}/0.mp4: {row['label']} ({row['confidence']:.0%})"]


@pytest.mark.parametrize("familiar", [0.0, 1e6])
def test_what_is_unlike_is_said(capsys, model, folder, tmp_path, familiar):
    own = tmp_path / "model"
    shutil.copytree(model, own)
    config = json.loads((own / "lm" / "config.json").read_text())
    (own / "lm" / "config.json").write_text(json.dumps(config | {"familiar": familiar}))
    code, lines, err = run(capsys, "caption", folder / "0.mp4", folder / "1.mp4", "--model", own, "--json")
    assert code == 0 and [json.loads(line)["familiar"] for line in lines] == [familiar > 0] * 2
    told = "unknown domain: 2 of 2 are unlike what this model was trained on"
    assert err[-1].startswith(told) == (familiar == 0)
    _, lines, _ = run(capsys, "caption", folder / "0.mp4", "--model", own)
    assert lines[0].endswith("[unlike what the model was trained on]") == (familiar == 0)
    _, lines, _ = run(capsys, "caption", folder / "0.mp4", "--model", own, "--detail", "1", "--json")
    assert "familiar" not in json.loads(lines[0])  # measured at finer levels


def test_windows_have_times_and_subtitles(capsys, model, tmp_path):
    path = tmp_path / "long.mp4"
    frames = np.repeat(np.arange(0, 250, 10, dtype=np.uint8), 1)[:, None, None, None] * np.ones(
        (1, 32, 32, 3), np.uint8
    )
    write_video(path, list(frames), fps=10)  # 2.5 s
    found = list(windows(path, 1.0, 5, (32, 32)))
    assert [(w.start, round(w.end, 2)) for w in found] == [(0.0, 1.0), (1.0, 2.0), (2.0, 2.6)]
    shades = [((w.video.mean(dim=(0, 1, 3, 4)) + 1) * 127.5).round().tolist() for w in found]
    assert np.allclose(shades[0], [0, 20, 40, 60, 80], atol=4) and np.allclose(shades[1][0], 100, atol=4)
    assert shades[2][0] == pytest.approx(200, abs=4) and len(shades[2]) == 5
    for kind in ("srt", "vtt", "json"):
        out = tmp_path / f"said.{kind}"
        code, lines, _ = run(capsys, "caption", path, "--every", "1", "--model", model, "--out", out, "--json")
        rows = [json.loads(line) for line in lines]
        assert code == 0 and [row["start"] for row in rows] == [0, 1, 2]
        text = out.read_text()
        if kind == "json":
            assert [row["caption"] for row in json.loads(text)] == [row["caption"] for row in rows]
        else:
            assert text.count("-->") == 3 and ("00:00:01,000 --> 00:00:02,000" in text) == (kind == "srt")
            assert text.startswith("WEBVTT\n\n1\n00:00:00.000 --> ") == (kind == "vtt")
    code, _, err = run(capsys, "caption", path, "--every", "1", "--model", model, "--out", tmp_path / "said.srt")
    assert code == 2 and "exists already" in err[-1]


@pytest.fixture
def film(tmp_path):
    """Eight seconds."""
    path = tmp_path / "film.mkv"
    write_video(path, list(np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3), dtype=np.uint8)), fps=10)
    return path


def through(pipe, data):
    """Writes to a new pipe as soon as it is read."""
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=[data], daemon=True).start()
    return pipe


def test_a_stream_says_what_its_file_says(capsys, model, film, tmp_path):
    for option in ([], ["--every", "1"]):
        rows = []
        for path in (film, through(tmp_path / f"pipe{len(option)}", film.read_bytes())):
            code, lines, _ = run(capsys, "caption", path, "--model", model, "--json", *option)
            rows.append([json.loads(line) | {"input": ""} for line in lines])
            assert code == 0
        assert rows[0] == rows[1] and len(rows[0]) == (8 if option else 1)


def test_a_stream_is_read_as_it_comes_and_an_interrupt_keeps_what_was_said(model, film, tmp_path):
    out, half = tmp_path / "said.vtt", film.stat().st_size // 2
    command = [sys.executable, "-m", "tasks.cli", "caption", "-", "--every", "1", "--model", model, "--out", out]
    with subprocess.Popen([*command, "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        limit = threading.Timer(60, process.kill)
        limit.start()
        process.stdin.write(film.read_bytes()[:half])
        process.stdin.flush()
        rows = [json.loads(process.stdout.readline()) for _ in range(3)]  # nothing, where windows wait for the end
        process.send_signal(signal.SIGINT)
        with suppress(BrokenPipeError):
            process.stdin.close()
        rows += map(json.loads, process.stdout.read().splitlines())
        limit.cancel()
        assert process.wait() == 0
    assert [row["start"] for row in rows] == list(range(len(rows)))
    assert out.read_text().count("-->") in (len(rows), len(rows) + 1)  # one more may have been about to be said


@pytest.mark.parametrize("data", [b"", b"no video " * 99])
def test_a_stream_that_is_none_is_named(capsys, model, tmp_path, data):
    code, _, err = run(capsys, "ask", "why?", through(tmp_path / "pipe", data), "--model", model)
    assert code == 2 and "pipe: expected a video or picture, got a stream that FFmpeg does not read" in err[-1]


def test_a_stream_is_for_those_that_read_once(capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for verb in (["tokenize", "--out", tmp_path / "out"], ["reconstruct", "--out", tmp_path / "out.mp4"]):
        code, _, err = run(capsys, verb[0], tmp_path / "pipe", *verb[1:])
        assert code == 2 and "expected a file, got a stream, which caption, ask and classify alone read" in err[-1]


def test_subtitles_of_hours(tmp_path):
    write_subtitles(tmp_path / "a.srt", [(3599.9996, 36000.5, Said("héllo", 0.5)), (36001, 36002, Said("", 1.0))], "x")
    assert (tmp_path / "a.srt").read_text(encoding="utf8") == (
        "1\n01:00:00,000 --> 10:00:00,500\nhéllo\n\n2\n10:00:01,000 --> 10:00:02,000\n-\n"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["caption", "{}", "--out", "a.srt"], "--out: expected --every beside it"),
        (["caption", "{}", "--every", "1", "--out", "a.txt"], "a name that ends in .srt, .vtt or .json"),
        (["caption", "{}", "--every", "1", "--format", "ass"], "--format: expected one of srt, vtt, json, got 'ass'"),
        (["caption", "{}", "--every", "0.01"], "--every: expected at least 0.05 seconds, got 0.01"),
        (["caption", "{}", "--every", "nan"], "--every: expected at least 0.05 seconds, got nan"),
        (["caption", "{}", "--beams", "2", "--temperature", "1"], "expected one beam where text is drawn"),
        (["ask", " ", "{}"], "QUESTION: expected a question, got an empty one"),
        (["ask", "why is it so?", "{}"], "expected questions of at most 8 tokens"),
        (["classify", "{}", "--labels", "a,a"], "--labels: expected at least two labels between commas, each once"),
        (["classify", "{}", "--labels", "a"], "--labels: expected at least two labels"),
        (["ask", "why?", "{}", "--model", "mini"], "task: this model knows"),
        (["caption", "{}", "--dtype", "int8"], "--dtype: expected float32 or bfloat16, got 'int8'"),
    ],
)
def test_errors(capsys, model, clip, args, message):
    args = [str(clip) if arg == "{}" else arg for arg in args]
    code, lines, err = run(capsys, *args, *([] if "--model" in args else ["--model", model]))
    assert (code, lines) == (2, []) and message in err[-1], err


def test_an_index_is_searched_by_text_and_by_clip(capsys, folder, tmp_path):
    """With the shipped `mini`: clips of the world, some words of whose captions find them."""
    from pyramid.data.shapes import ShapesDataset, preset

    items = ShapesDataset(preset("mini"), "test").__getitems__(list(range(12)))
    for number, item in enumerate(items):
        frames = ((item["video"].permute(1, 2, 3, 0) + 1) * 127.5).round().byte().numpy()
        write_video(folder / f"scene{number:02d}.mkv", list(frames), fps=8)
    out = tmp_path / "index"
    code, lines, err = run(capsys, "index", folder, "--model", "mini", "--out", out, "--json")
    assert code == 2 and "2.mp4" in lines[0] and json.loads(lines[-1])["clips"] == 16, err
    for extra in ([], ["--rerank"]):
        ranks = []
        for number, item in enumerate(items):
            code, lines, err = run(capsys, "search", out, item["caption"], "--top", "16", "--json", *extra)
            assert code == 0, err
            names = [json.loads(line)["input"] for line in lines]
            ranks.append(names.index(str(folder / f"scene{number:02d}.mkv")))
        assert ranks.count(0) >= 10, ranks
    code, lines, _ = run(capsys, "search", out, "--like", folder / "scene03.mkv", "--top", "1")
    assert code == 0 and lines[0].startswith(f"1. {folder}/scene03.mkv (")
    code, lines, err = run(capsys, "search", out, "a red qwertz", "--top", "1")
    assert code == 0 and "left out: qwertz" in err[0]
    for args, message in (
        ([], "expected TEXT or --like CLIP, one of them"),
        (["--like", folder / "0.mp4", "--rerank"], "--rerank: expected TEXT"),
        (["qwertz"], "expected a text with words of the table"),
    ):
        code, lines, err = run(capsys, "search", out, *args)
        assert (code, lines) == (2, []) and message in err[-1]
    code, _, err = run(capsys, "index", folder, "--model", "mini", "--out", out)
    assert code == 2 and "exists already" in err[-1]
    for args in (["--like", folder / "0.mp4"], ["a red star", "--rerank"]):  # words of another table, as many
        code, lines, err = run(capsys, "search", out, *args, "--model", "handwriting")
        assert (code, lines) == (2, []) and "expected the tokenizer of the index, mini" in err[-1]


def test_an_index_by_the_default_model_of_windows(capsys, folder, tmp_path):
    out = tmp_path / "index"
    assert run(capsys, "index", folder / "0.mp4", "--every", "0.5", "--out", out)[0] == 0
    code, lines, err = run(capsys, "search", out, "a red star", "--rerank", "--json")
    found = [json.loads(line) for line in lines]
    assert code == 0 and len(found) > 1, err
    assert all(row["input"] == str(folder / "0.mp4") and row["end"] > row["start"] for row in found)


def test_indexes_that_are_none(capsys, folder, tmp_path):
    code, _, err = run(capsys, "index", folder / "2.mp4", "--model", "mini", "--out", tmp_path / "other")
    assert code == 2 and "expected at least one clip that can be read, got none of 1" in err[-1]
