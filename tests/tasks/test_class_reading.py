"""Classes told from codes and from pixels, the one-shot benchmark, and captions against what people said."""

from __future__ import annotations

import io
import json
import math
import zipfile

import numpy as np
import pytest
import torch
from made_strokes import small_set
from PIL import Image
from torch import nn

from lm.episodes import EpisodeConfig, EpisodeModel, Episodes
from pyramid.data.shapes import preset
from tasks import cli, one_shot
from tasks.caption_reading import likeness, rouge_l, score_texts
from tasks.class_reading import Budget, classify, flat_prefix, read_clips
from tasks.classifiers import CodeClassifier, PixelClassifier, fit
from tasks.console import Console
from tasks.evaluate_episodes import _one_shot, _run_episodes
from tasks.held_out import ShapesSource
from tasks.models import load_lm, load_tokenizer
from tasks.one_shot import error, read_runs, run_tokens


def plain(items, what, total):
    return iter(items)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("mini")


@pytest.fixture(scope="module")
def handwriting(tmp_path_factory):
    """Clips of 32x32 of two characters each of two alphabets, by drawers of both splits."""
    folder = tmp_path_factory.mktemp("handwriting")
    zips = [small_set(folder / f"{name}.zip", name, drawers=range(10, 20)) for name in ("Greek", "Latin")]
    out = folder / "clips"
    args = ["data", "omniglot", *map(str, zips), "--size", "32", "--frames", "9", "--workers", "0", "--out", str(out)]
    assert cli.main(args) == 0
    return out


@pytest.fixture(scope="module")
def source():
    return ShapesSource(preset("mini"))


@pytest.fixture(scope="module")
def clips(tokenizer, source):
    train = read_clips(tokenizer, source, "train", range(1000, 1160), plain, "train")
    return train, read_clips(tokenizer, source, "held_out", range(500, 564), plain, "test")


def test_a_prefix_of_flat_ids_is_that_of_the_tokens(tokenizer, clips):
    ids = clips[0].ids[:5]
    assert torch.equal(flat_prefix(tokenizer, ids, 9, tokenizer.num_levels), ids.long())
    short = flat_prefix(tokenizer, ids, 9, 2)
    assert short.shape == (5, 10)
    assert torch.equal(short[:, :5], ids[:, :5].long())  # the first frame's two levels


@pytest.mark.parametrize("detail", [2, 5])
def test_every_level_that_is_read_counts_and_none_beyond(tokenizer, clips, detail):
    torch.manual_seed(0)
    model = CodeClassifier(tokenizer, 9, detail, {"shape": 6}).eval()
    ids = flat_prefix(tokenizer, clips[0].ids[:2], 9, detail)
    said = model(ids)["shape"]
    assert said.shape == (2, 6)
    start = 0
    for pyramid in model.pyramids:
        for level in range(detail):
            other = ids.clone()
            other[0, start + pyramid.offsets[level]] ^= 1
            changed = model(other)["shape"]
            assert not torch.equal(changed[0], said[0]) and torch.equal(changed[1], said[1])
        start += pyramid.num_tokens
    last = model.vectors(ids, [len(model.pyramids) - 1])
    other = ids.clone()
    other[:, 0] ^= 1  # of the first chunk, which is not looked at
    assert torch.equal(model.vectors(other, [len(model.pyramids) - 1]), last)


def test_pixels_of_any_part_count():
    model = PixelClassifier({"a": 3}, widths=(8, 16))
    clip = torch.full((1, 3, 5, 16, 16), 128, dtype=torch.uint8)
    said = model(clip)["a"]
    for place in ((0, 0, 0), (4, 15, 15), (2, 8, 3)):
        other = clip.clone()
        other[0, :, place[0], place[1], place[2]] = 255
        assert not torch.equal(model(other)["a"], said)


def test_fit_learns_what_is_there_and_not_what_is_not():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2400, 32, generator=generator)
    targets = {"there": (inputs[:, 0] > 0).long(), "not": torch.randint(2, (2400,), generator=generator)}
    targets["there"][::7] = -1

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(32, 32)
            self.heads = nn.ModuleDict({name: nn.Linear(32, 2) for name in ("there", "not")})

        def forward(self, x):
            x = self.body(x.float()).relu()
            return {name: head(x) for name, head in self.heads.items()}

    train = (inputs[:2000], {name: values[:2000] for name, values in targets.items()})
    test = (inputs[2000:], {name: values[2000:] for name, values in targets.items()})
    done = fit(Net, train, test, minutes=0.05)
    assert done.accuracy["there"] > 0.75 and abs(done.accuracy["not"] - 0.5) < 0.15 and done.steps > 20
    assert done.accuracy["all"] <= min(done.accuracy["there"] + 0.2, 1) and not done.model.training


def test_clips_without_a_class_count_for_nothing():
    class Always(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(32, 32)

        def forward(self, x):
            logits = torch.tensor([9.0, 0.0]) + 0 * self.body(x)[:, :2]
            return dict.fromkeys(("a", "b", "c"), logits)

    inputs, none = torch.zeros(4, 32), torch.full((4,), -1)
    truth = {"a": torch.tensor([0, 1, 1, -1]), "b": torch.tensor([0, 0, -1, 0]), "c": none}
    learned = {name: torch.zeros(4, dtype=torch.int64) for name in truth}
    told = fit(Always, (inputs, learned), (inputs, truth), minutes=0.001).accuracy
    assert told == pytest.approx({"a": 1 / 3, "b": 1.0})  # none has all three
    truth.pop("c")
    assert fit(Always, (inputs, learned), (inputs, truth), minutes=0.001).accuracy["all"] == 0.5


def test_rows_of_every_way_of_telling(tokenizer, source, clips):
    rows, fitted = classify(tokenizer, source, *clips, [1, 2], budget=Budget(64, 0.02, 0.03), seeds=[3, 4], track=plain)
    ways = [(row["of"], row.get("detail"), row.get("seed")) for row in rows]
    assert ways[:2] == [("most frequent", None, None), ("nearest pixels", None, None)]
    assert ways[2:4] == [("nearest code", 1, None), ("nearest code", 2, None)]
    assert ways[4:] == [
        (of, detail, seed) for seed in (3, 4) for of, detail in (("codes", 1), ("codes", 2), ("pixels", None))
    ]
    assert fitted.keys() == {1, 2}
    near = {row["detail"]: row for row in rows if row["of"] == "nearest code"}
    assert near[2]["shape"] > 0.6 > rows[0]["shape"] and near[1]["shape"] < near[2]["shape"]  # words say it
    codes = [row for row in rows if row["of"] == "codes"]
    assert all(row["tokens"] == {1: 2, 2: 10}[row["detail"]] and 5 < row["psnr"] < 40 for row in codes)
    assert all({"shape", "colour", "size", "motion", "all", "a_second", "parameters"} <= row.keys() for row in codes)


def test_likeness():
    assert rouge_l("put the red cup down", "put the cup on the table") == 6 / 11
    assert rouge_l("a", "b") == 0.0
    same = likeness(["Put it down there.", "Take a cup away"], ["put it down there", "take a cup away"])
    assert (
        same["exact"] == same["verb"] == same["rouge_l"] == 1.0
        and math.isclose(same["chrf"], 100)
        and same["bleu"] > 99
    )
    other = likeness(["take it", "take it"], ["put this down there", "take a cup away"])
    assert other["verb"] == 0.5 and other["rouge_l"] < 0.5 and other["chrf"] < 40 and other["distinct"] == 1


def test_texts_of_real_clips_are_scored_and_found(clips):
    lm = load_lm("mini")
    test = read_clips(lm.tokenizer, ShapesSource(preset("mini")), "held_out", range(500, 530), plain, "test")
    from tasks.class_reading import tokens_of

    tokens = tokens_of(lm.tokenizer, test.ids, 9)
    captions = [answer.text for answer in lm.ask(tokens, None, 2)]
    rows = score_texts(lm, tokens, captions, captions, captions[1:] + captions[:1], 2)
    assert [row["of"] for row in rows] == ["most frequent caption", "nearest code's caption", "captions"]
    assert rows[2]["rouge_l"] == 1.0 and rows[2]["found"] > 0.9 and rows[2]["found_by_chance"] == 0.05
    assert rows[0]["rouge_l"] < 1 and rows[1]["rouge_l"] < 1
    long = [caption + " and so on" * lm.config.max_text for caption in captions]  # more than the model can write
    assert score_texts(lm, tokens, long, captions, captions, 2)[2]["found"] > 0.9


def benchmark(path):
    """A zip like Omniglot's: in each run 20 pictures, each asked for as it is."""
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as file:
        for run in range(1, 21):
            lines = []
            for item in range(1, 21):
                picture = Image.fromarray((generator.random((105, 105)) > 0.2).astype(np.uint8) * 255)
                buffer = io.BytesIO()
                picture.convert("1").save(buffer, format="PNG")
                names = f"run{run:02d}/test/item{item:02d}.png", f"run{run:02d}/training/class{item:02d}.png"
                for name in names:
                    file.writestr(name, buffer.getvalue())
                lines.append(" ".join(names))
            file.writestr(f"run{run:02d}/class_labels.txt", "\n".join(lines))


def test_the_one_shot_benchmark_is_read_and_scored(tmp_path):
    benchmark(tmp_path / "all_runs.zip")
    runs = read_runs(tmp_path / "all_runs.zip", (32, 32))
    assert len(runs) == 20 and runs[0].asked.shape == (20, 3, 32, 32) and runs[0].asked.abs().max() <= 1
    assert torch.equal(runs[3].asked, runs[3].known) and runs[3].truth.tolist() == list(range(20))
    assert error((run.asked.flatten(1), run.known.flatten(1), run.truth) for run in runs) == 0.0
    assert error((run.asked.flatten(1), run.known.roll(1, 0).flatten(1), run.truth) for run in runs) == 1.0
    tokenizer = load_tokenizer("mini")
    asked, known = run_tokens(tokenizer, runs[0], 9, 2, views=3, seed=1)
    assert len(asked) == len(known) == 3 and asked[0].flatten().equal(known[0].flatten())
    assert not asked[1].flatten().equal(asked[2].flatten()) and not asked[1].flatten().equal(known[1].flatten())
    again = run_tokens(tokenizer, runs[0], 9, 2, views=2, seed=1)[0]
    assert all(view.flatten().equal(first.flatten()) for view, first in zip(again, asked, strict=False))
    with pytest.raises(FileNotFoundError, match=r"expected all_runs.zip of Omniglot, found nothing"):
        read_runs(tmp_path / "nothing.zip", (32, 32))
    (tmp_path / "other.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"expected all_runs.zip of Omniglot, got another file"):
        read_runs(tmp_path / "other.zip", (32, 32))


def test_the_one_shot_benchmark_in_context(tmp_path, monkeypatch):
    monkeypatch.setattr(one_shot, "VIEWS", 1)
    benchmark(tmp_path / "all_runs.zip")
    tokenizer = load_tokenizer("mini")
    runs = _run_episodes(tokenizer, read_runs(tmp_path / "all_runs.zip", (32, 32))[:2], Console("test"))
    assert [run.labels.shape for run in runs] == [(20, 21)] * 2 and runs[0].labels[3].tolist() == [*range(20), 3]
    for run in runs:  # what is asked for is among those that it is to be matched to
        assert torch.equal(run.features[:, -1], run.features[0, :20])
    torch.manual_seed(0)
    known = torch.randn(20, 8)
    apart = Episodes(torch.cat([known.expand(20, 20, 8), known[:, None]], 1), runs[0].labels, runs[0].names)
    row = _one_shot(EpisodeModel(EpisodeConfig(8, num_labels=20), known).eval(), [apart])
    assert row["nearest_mean"] == 1.0 and 0 <= row["right"] < 0.5 and row["chance"] == 1 / 20


def test_a_folder_is_evaluated_by_the_command(handwriting, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(one_shot, "VIEWS", 2)
    benchmark(tmp_path / "all_runs.zip")
    args = ["evaluate", "understanding", "mini", str(handwriting), "--target", "label", "--target", "alphabet"]
    args += ["--clips", "8", "--train", "16", "--minutes", "0.01", "--seeds", "1", "--detail", "2"]
    args += ["--one-shot", str(tmp_path / "all_runs.zip"), "--out", str(tmp_path / "out"), "--json"]
    assert cli.main(args) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    sections = [row["section"] for row in rows if "section" in row]
    assert list(dict.fromkeys(sections)) == ["classes", "one-shot", "texts"]
    assert {"evaluation.txt", "evaluation.json", "evaluation.png"} == {p.name for p in (tmp_path / "out").iterdir()}
    assert rows[-1]["protocol"]["split"] == "val"
    texts = [row for row in rows if row.get("section") == "texts"]
    again = [*args[: args.index("--minutes")], "--minutes", "0", "--seeds", "1", "--detail", "2", "--json"]
    assert cli.main(again) == 0
    rows_again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows_again if "section" in row] == texts  # without classifiers
    shots = [(row["of"], row["views"]) for row in rows if row.get("section") == "one-shot" and "views" in row]
    assert shots == [(of, views) for of in ("nearest code", "read from codes") for views in (1, 2)]


def test_what_cannot_be_evaluated_is_said_before_any_work(handwriting, tmp_path, capsys):
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "a.mp4").write_bytes(next(handwriting.rglob("*.mp4")).read_bytes())
    for args, message in (
        (["understanding", "mini", str(lone), "--minutes", "0"], "expected clips to learn from and clips held out"),
        (["understanding", "mini", str(handwriting), "--one-shot", "no.zip"], "expected all_runs.zip of Omniglot"),
        (
            ["episodes", "mini", str(handwriting), "--ways", "40"],
            "expected at least 80 labels, 40 of them for the test",
        ),
        (["episodes", "mini", "--one-shot", "no.zip"], "expected all_runs.zip of Omniglot, found nothing"),
    ):
        assert cli.main(["evaluate", *args]) == 2
        assert message in capsys.readouterr().err
    benchmark(tmp_path / "all_runs.zip")
    assert cli.main(["evaluate", "episodes", "mini", "--one-shot", str(tmp_path / "all_runs.zip")]) == 2
    assert "--one-shot: expected --ways of at least 20, got 5" in capsys.readouterr().err


def test_episodes_by_the_command(tmp_path, capsys):
    args = ["evaluate", "episodes", "mini", "--ways", "3", "--shots", "0,2", "--clips", "256", "--minutes", "0.03"]
    assert cli.main([*args, "--seeds", "1", "--out", str(tmp_path / "out"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()][:-1]
    assert [(row["classes"], row["shots"]) for row in rows] == [
        (kind, shots) for kind in ("combination", "one attribute") for shots in (0, 2)
    ]
    assert rows[1]["nearest_mean"] > 0.6 and abs(rows[0]["right"] - 1 / 3) < 0.1
    assert (tmp_path / "out" / "evaluation.png").stat().st_size > 5000
    assert cli.main(["evaluate", "episodes", "mini", "--shots", "5,1"]) == 2
    assert "--shots: expected numbers from 0 that rise" in capsys.readouterr().err


def test_words_of_classes_by_the_command(handwriting, tmp_path, capsys):
    out = tmp_path / "classes.json"
    assert cli.main(["data", "classes", str(handwriting), "--each", "3", "--pool", "10", "--out", str(out)]) == 0
    first = json.loads(out.read_text(encoding="utf8"))
    assert len(first) > 1 and all(len(set(words)) == 3 for words in first.values())
    assert len({word for words in first.values() for word in words}) <= 10
    assert cli.main(["data", "classes", str(handwriting), "--each", "3", "--pool", "10", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    again = ["data", "classes", str(handwriting), "--each", "3", "--pool", "10", "--out", str(out), "--overwrite"]
    assert cli.main(again) == 0 and json.loads(out.read_text(encoding="utf8")) == first
    assert (
        cli.main(["data", "classes", str(handwriting), "--each", "11", "--pool", "10", "--out", str(tmp_path / "x")])
        == 2
    )
