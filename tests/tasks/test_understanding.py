"""How captions and answers are scored: a reader that is right, one that is not, and answers that look at no clip."""

from __future__ import annotations

import json

import pytest

from lm.reading import Answer
from pyramid.data.shapes import ShapesDataset, preset
from tasks import cli
from tasks.models import load_lm
from tasks.understanding import Clips, score_captions, score_pixels, score_questions


@pytest.fixture(scope="module")
def clips():
    return Clips.of(load_lm("mini"), "one object", ShapesDataset(preset("mini"), "test"), 500, 40)


class Oracle:
    """Says what is true of a clip, found by its tokens, of so many clips in a hundred."""

    def __init__(self, clips, right):
        self.truth = {tuple(row.tolist()): item for row, item in zip(clips.tokens.flatten(), clips.items, strict=True)}
        self.right, self.count = right, 0

    def ask(self, tokens, questions, detail):
        answers = []
        for row, flat in enumerate(tokens.flatten()):
            item = self.truth[tuple(flat.tolist())]
            true = item["caption"] if questions is None else dict(map(tuple, item["questions"]))[questions[row]]
            self.count += 1
            answers.append(Answer(true if self.count % 100 < self.right else "what?", 0.5))
        return answers


def test_finer_prefixes_are_nearer_to_the_pixels(clips):
    rows = score_pixels(load_lm("mini").tokenizer, clips, [1, 5])
    assert [(row["detail"], row["tokens"]) for row in rows] == [(1, 2), (5, 98)]
    assert 10 < rows[0]["psnr"] < 22 and 26 < rows[1]["psnr"] < 32


@pytest.mark.parametrize("right", [100, 0])
def test_what_is_right_counts(clips, right):
    blind, *rows = score_captions(Oracle(clips, right), clips, [2, 5])
    assert [row["detail"] for row in rows] == [2, 5] and rows[0]["tokens"] == 10 and rows[1]["tokens"] == 98
    assert all(row["all"] == row["shape"] == right / 100 and row["confidence"] == 0.5 for row in rows)
    assert blind["of"] == "most frequent" and 0.16 < blind["shape"] < 0.5 and blind["all"] < 0.2
    train = ShapesDataset(preset("mini"), "train")
    blind, *rows = score_questions(Oracle(clips, right), clips, [2], train, each=4)
    assert rows[0]["all"] == rows[0]["open"] == rows[0]["choices"] == rows[0]["yes_no"] == right / 100
    assert rows[0]["count"] == 160 and 0.2 < blind["all"] < 0.6 and 0.3 < blind["yes_no"] < 0.8


def test_the_command(capsys, tmp_path):
    args = ["evaluate", "understanding", "mini", "--clips", "16", "--detail", "1,2", "--seeds", "2"]
    args += ["--minutes", "0"]
    assert cli.main([*args, "--out", str(tmp_path / "out"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    captions = [row for row in rows if row.get("of") == "captions"]
    assert [(row["clips"], row["seed"], row["detail"]) for row in captions] == [
        (name, seed, detail) for name in ("one object", "held-out combinations") for seed in (0, 1) for detail in (1, 2)
    ]
    assert all(row["all"] > 0.9 for row in captions if row["detail"] == 2)
    assert len([row for row in rows if row.get("of") == "pixels" and row["psnr"] > 12]) == 8
    assert rows[-1]["protocol"]["seeds"] == [0, 1]
    text = (tmp_path / "out" / "evaluation.txt").read_text()
    assert "held-out combinations" in text and "most frequent" in text
    assert (tmp_path / "out" / "evaluation.png").stat().st_size > 10_000
