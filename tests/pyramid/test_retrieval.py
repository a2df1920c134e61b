"""Search by words: a hand-made index whose answers are plain, saved and loaded."""

from __future__ import annotations

import json

import pytest
import torch

from pyramid.levels import Level, Pyramid
from pyramid.retrieval import ClipIndex, word_places
from pyramid.words import WordTable

WORDS = ("red", "scarlet", "blue", "star", "ring", "jumps", "rests")
PYRAMIDS = [
    Pyramid((Level(1, 1, 1), Level(1, 1, 2), Level(1, 2, 2))),
    Pyramid((Level(1, 1, 1), Level(1, 1, 2), Level(1, 1, 1))),
]


@pytest.fixture
def index():
    vectors = torch.eye(7)
    vectors[1] = torch.tensor([0.9, 0.436, 0, 0, 0, 0, 0])  # scarlet is near red
    table = WordTable(WORDS, vectors, torch.zeros(7), torch.eye(7), "by hand")
    clips = ["red star jumps", "blue star jumps", "scarlet ring jumps", "blue ring rests"]
    places = word_places(PYRAMIDS, [0, 1])
    ids = torch.full((4, 11), 3)
    ids[:, places] = torch.tensor([table.text_to_ids(f"{words} {words}") for words in clips])
    return ClipIndex(ids, [f"{i}.mp4" for i in range(4)], places, table, (9, 8, 8), 2, "mini")


def test_words_have_their_places():
    assert word_places(PYRAMIDS, [0, 1]) == [0, 1, 2, 7, 8, 9] and word_places(PYRAMIDS, [2]) == [3, 4, 5, 6, 10]


@pytest.mark.parametrize(
    ("text", "order"),
    [("a red star", [0]), ("the scarlet ring", [2]), ("something red", [0, 2]), ("it rests", [3]), ("blue ring!", [3])],
)
def test_the_nearest_come_first(index, text, order):
    hits = index.search(text, top=len(order))
    assert [hit.place for hit in hits] == order and hits[0].name == f"{order[0]}.mp4"


def test_what_all_say_decides_nothing(index):
    index.ids[:, index.word_places[2]] = 5  # all move
    index.ids[:, index.word_places[5]] = 5
    assert [hit.score for hit in index.search("jumps")] == [0.0] * 4
    found, alone = index.search("a star jumps", 4), index.search("a star", 4)
    assert [hit.place for hit in found] == [hit.place for hit in alone]


def test_a_clip_finds_itself(index):
    for place in range(4):
        assert index.search(index.words[place], 1)[0].place == place
    tokens = index.tokens([2, 0], PYRAMIDS)
    assert tokens.num_frames == 9 and torch.equal(tokens.flatten(), index.ids[[2, 0]].long())


def test_a_folder_holds_it(index, tmp_path):
    index.spans[1], index.fingerprint = (2.0, 4.5), "abc"
    index.save(tmp_path / "index")
    again = ClipIndex.load(tmp_path / "index")
    assert torch.equal(again.ids, index.ids) and again.search("a red star") == index.search("a red star")
    assert (again.names, again.shape, again.detail, again.tokenizer) == (index.names, (9, 8, 8), 2, "mini")
    assert (again.spans, again.fingerprint) == ([None, (2.0, 4.5), None, None], "abc")
    (tmp_path / "index" / "index.json").write_text(json.dumps({"format": "pyramid.index", "version": 1}))
    with pytest.raises(ValueError, match=r"expected pyramid.index, version 2, got \('pyramid.index', 1\)"):
        ClipIndex.load(tmp_path / "index")
    with pytest.raises(FileNotFoundError, match="`pyramid index` makes one"):
        ClipIndex.load(tmp_path)


def test_errors(index):
    assert index.unknown("a green star that jumps") == ["green"]
    with pytest.raises(ValueError, match="expected a text with words of the table, got 'the green one'"):
        index.search("the green one")
    with pytest.raises(ValueError, match="top: expected at least 1, got 0"):
        index.search("red", 0)
    with pytest.raises(ValueError, match="expected tokens with words among them, got none"):
        ClipIndex(index.ids, index.names, [], index.table, (9, 8, 8), 2, "mini")
    with pytest.raises(ValueError, match="expected 4 names and spans, got 1 and 4"):
        ClipIndex(index.ids, ["a"], [0], index.table, (9, 8, 8), 2, "mini")
