"""Prompts for frozen language models, and replies of any kind."""

from __future__ import annotations

import random
import string

import pytest
import torch

from lm.incontext import (
    Example,
    Reply,
    answer_prompt,
    clip_words,
    denoising_prompt,
    read_caption,
    read_label,
    read_words,
    words_prompt,
    written,
)
from pyramid.words import WordTable

TABLE = WordTable(
    ("ring", "star", "red", "large", "left", "gradient"), torch.eye(6), torch.zeros(6), torch.eye(6), "by hand"
)
WORDS = [["ring"], ["red", "large", "red", "left"]]


def test_words_of_chunks_are_put_together_by_level():
    chunks = [[["ring"], ["red", "large"]], [["ring"], ["red", "left"]]]
    assert clip_words(chunks) == [["ring", "ring"], ["red", "large", "red", "left"]] and clip_words([]) == []
    assert written(clip_words(chunks)) == "layer 1: ring | layer 2: red large left"
    assert written(WORDS, 1) == "layer 1: ring"


def test_a_prompt_of_examples():
    examples = [Example([["star"], ["red"]], "a star"), Example([["ring"], ["large"]], "a ring")]
    prompt = answer_prompt(examples, WORDS, labels=["a star", "a ring"])
    assert prompt.splitlines()[0].endswith("Say which label the last clip has: a star, a ring.")
    assert prompt.endswith("label: a ring\n\nclip: layer 1: ring | layer 2: red large left\nlabel:")
    assert prompt.count("clip: ") == 3 and "layer 2" not in answer_prompt(examples, WORDS, detail=1)
    asked = answer_prompt([], WORDS, what="caption", instruction="Describe the last clip.")
    assert asked.endswith("Describe the last clip.\n\nclip: layer 1: ring | layer 2: red large left\ncaption:")


def test_words_are_asked_for_level_by_level():
    examples = [Example([["star"], ["red", "left"]], "a red star")]
    first = words_prompt(examples, "a ring", 0, [1, 2])
    assert first.endswith("caption: a red star\nlayer 1: star\n\ncaption: a ring\nlayer 1:")
    second = words_prompt(examples, "a ring", 1, [1, 2], [["ring"]])
    assert "the 2 words of layer 2" in second and second.endswith("layer 1: ring\nlayer 2:")
    assert second.count("layer 2: red left") == 1


def test_examples_are_less_and_less_disturbed():
    clips = [[["ring"] * 40, ["red"] * 40]] * 4
    lines = denoising_prompt(clips, [["ring"], ["left"] * 3], 1, TABLE, seed=3).split("\n\n")
    shown = [line.split("layer 2: ")[1].split("\nmended:") for line in lines[1:]]
    wrong = [sum(a != b for a, b in zip(left.split(), right.split(), strict=True)) for left, right in shown[:-1]]
    assert wrong == sorted(wrong, reverse=True) and 10 < wrong[0] <= 24 and wrong[-1] < 10
    assert shown[-1] == ["left left left", ""]


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("red", Reply("red", True)),
        (" Label: RED.\nclip: blue", Reply("red", True)),
        ("\n\n'dark blue'", Reply("dark blue", True)),
        ("It is dark blue, not red.", Reply("dark blue", True)),
        ("I think the answer is blue", Reply("blue", True)),
        ("reed", Reply("red", False)),
        ("hundred", Reply("", False)),
        ("", Reply("", False)),
        ("\x00\udcff???", Reply("", False)),
    ],
)
def test_labels_of_replies(reply, answer):
    assert read_label(reply, ["red", "blue", "dark blue"]) == answer


@pytest.mark.parametrize(
    ("labels", "replies"),
    [
        (["C", "C++", "Java"], {"C++": "C++", "c": "C", "It is C++, not Java.": "C++", "C# or so": "C"}),
        (["3", "-3"], {"-3": "-3", "3": "3", "it must be -3": "-3", "label: 3.": "3"}),
        (["+", "-"], {"": "", "-": "-", "I say +": "+", "neither": ""}),
        (["Red", "red"], {"red": "red", "Red": "Red", "RED": "Red"}),
        (["red-green", "blue"], {"red green": "red-green", "the red, green one": "red-green"}),
    ],
)
def test_labels_that_signs_alone_tell_apart(labels, replies):
    assert {reply: read_label(reply, labels).answer for reply in replies} == replies


def test_no_reply_is_too_strange():
    draw = random.Random(0)
    letters = string.printable + "éß漢\u2028\x00" + "ring red left"
    for _ in range(500):
        reply = "".join(draw.choice(letters) for _ in range(draw.randrange(60)))
        assert read_label(reply, ["red", "left", "?", ""]).answer in ("red", "left", "?", "")
        words, exact = read_words(reply, TABLE, 4)
        assert len(words) == 4 and set(words) <= set(TABLE.words) and 0 <= exact <= 4
        assert isinstance(read_caption(reply).answer, str)


def test_words_of_replies():
    assert read_words("ring, red left\nmore", TABLE, 3) == (["ring", "red", "left"], 3)
    assert read_words("layer 2: the gradientt RED", TABLE, 3) == (["gradient", "red", "red"], 1)
    assert read_words("", TABLE, 2) == (["ring", "ring"], 0)
    assert read_words("ring " * 9, TABLE, 2) == (["ring", "ring"], 2)
    assert read_caption("\n caption: 'a red ring'\nclip:") == Reply("a red ring", True)
