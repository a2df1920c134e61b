import re

import pytest
import torch

from pyramid.data import grammar
from pyramid.data.shapes import (
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    SPLITS,
    ShapesConfig,
    ShapesDataset,
    held_out,
    preset,
)


def items(split="train", name="mini", indices=range(64), **changes):
    return ShapesDataset(preset(name, **changes), split).__getitems__(list(indices))


def test_a_clip_is_a_function_of_its_index():
    together, alone = items(indices=range(8)), items(indices=[5])[0]
    assert torch.equal(together[5]["video"], alone["video"]) and together[5]["attributes"] == alone["attributes"]
    assert not torch.equal(items(seed=1, indices=[5])[0]["video"], alone["video"])
    assert not torch.equal(items("val", indices=[5])[0]["video"], alone["video"])


def test_describing_renders_nothing(monkeypatch):
    expected = [{key: item[key] for key in item if key != "video"} for item in items(indices=[3, 1])]
    monkeypatch.setattr("pyramid.data.shapes._render", None)
    assert ShapesDataset(preset("mini")).describe([3, 1]) == expected
    with pytest.raises(IndexError, match=r"index must be in \[0, 2\), got 2"):
        ShapesDataset(preset("mini"), length=2).describe([2])


@pytest.mark.parametrize(
    "name, shape", [("mini", (3, 9, 32, 32)), ("single", (3, 17, 64, 64)), ("full", (3, 17, 64, 64))]
)
def test_clips_have_the_stated_form(name, shape):
    for item in items(name=name, indices=range(8)):
        video = item["video"]
        assert video.shape == shape and video.dtype == torch.float32
        assert video.min() >= -1 and video.max() <= 1 and video.std() > 0.05


def test_any_size_and_length():
    video = items(name="full", height=40, width=72, num_frames=5, indices=[0, 1])[0]["video"]
    assert video.shape == (3, 5, 40, 72)


def test_mini_has_every_value():
    seen = [item["attributes"].objects[0] for item in items(indices=range(600))]
    for name, values in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("motion", MOTIONS)):
        assert {getattr(thing, name) for thing in seen} == set(values)
    assert len(SHAPES) >= 6 and len(COLOURS) >= 8 and len(MOTIONS) >= 8 and len(SIZES) == 3


@pytest.mark.parametrize("name", ["mini", "single", "full"])
@pytest.mark.parametrize("split", SPLITS)
def test_held_out_combinations_never_appear_elsewhere(split, name):
    for item in items(split, name, range(200)):
        for thing in item["attributes"].objects:
            combination = (SHAPES.index(thing.shape), COLOURS.index(thing.colour), MOTIONS.index(thing.motion))
            assert held_out(*combination) == (split == "combinations")


@pytest.mark.parametrize("motion, axis, sign", [("left", 3, -1), ("right", 3, 1), ("up", 2, -1), ("down", 2, 1)])
def test_objects_move_as_they_are_said_to(motion, axis, sign):
    """The centre of what changed colour moves along the named direction and not across."""
    for item in items(indices=range(1000)):
        thing = item["attributes"].objects[0]
        if thing.motion != motion or thing.colour != "white":
            continue
        bright = (item["video"].min(dim=0).values > 0.5).float()  # (T, H, W)
        coordinates = torch.arange(32.0)
        weight = bright.sum(dim=(1, 2))
        x = (bright.sum(dim=1) * coordinates).sum(dim=1) / weight
        y = (bright.sum(dim=2) * coordinates).sum(dim=1) / weight
        along, across = (x, y) if axis == 3 else (y, x)
        assert sign * (along[-1] - along[0]) > 3
        assert (across[-1] - across[0]).abs() < 2
        return
    pytest.fail("no such clip among the first 1000")


def test_captions_and_paraphrases_parse_back():
    wordings = set()
    for item in items(indices=range(300)):
        thing = item["attributes"].objects[0]
        truth = {"shape": thing.shape, "colour": thing.colour, "size": thing.size, "motion": thing.motion}
        assert grammar.parse(item["caption"]) == truth | {"background": item["attributes"].background}
        found = grammar.parse(item["paraphrase"])
        assert {key: found[key] for key in truth} == truth
        wordings.add(item["paraphrase"] == item["caption"])
    assert wordings == {True, False}


@pytest.mark.parametrize("sentence", ["", "left left", "???", "a ring on a ring", "RED"])
def test_the_parser_reads_anything(sentence):
    assert isinstance(grammar.parse(sentence), dict)


def test_questions_have_answers_in_the_scene():
    for item in items(name="full", indices=range(30)):
        pairs = grammar.questions(item["attributes"])
        assert len(pairs) >= 5 and len({question for question, _ in pairs}) == len(pairs)
        assert all(question.endswith("?") and answer for question, answer in pairs)


def test_questions_in_other_words():
    """Each is asked once, its answer holds, and yes is as frequent as no, whatever else is asked."""
    answers, together = [], set()
    for item in ShapesDataset(preset("full")).describe(range(400)):
        scene, pairs = item["attributes"], item["questions"]
        assert pairs == grammar.questions(scene, item["index"])
        for question, answer in pairs:
            if " or " in question:
                assert answer in re.findall(r"\w+", question)
            if question.startswith("is there a"):
                word = re.findall(r"\w+", question)[3]
                named = [w for thing in scene.objects for w in (thing.colour, thing.shape)]
                synonyms = {**grammar.SHAPE_NAMES, **grammar.COLOUR_WORDS}
                assert (answer == "yes") == any(word in synonyms[value] for value in named), (question, named)
        said = [answer for _, answer in pairs if answer in ("yes", "no")]
        answers += said
        together.add(tuple(said[:3]))
    assert 0.45 < answers.count("yes") / len(answers) < 0.6  # a shape that is unique is asked after by its colour
    assert len(together) == 8
    assert (
        len(
            {
                question
                for item in ShapesDataset(preset("single")).describe(range(300))
                for question, _ in item["questions"]
            }
        )
        > 900
    )


def test_relations_hold_in_the_first_frame():
    relations = {item["attributes"].relation for item in items(name="full", indices=range(100))}
    assert relations == {None, "left of", "right of", "above", "below"}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: preset("tiny"), r"expected one of \['full', 'mini', 'single'\], got 'tiny'"),
        (lambda: ShapesConfig(height=4), "at least 8, got 4x32"),
        (lambda: ShapesConfig(num_frames=0), "at least 1, got 0"),
        (lambda: ShapesConfig(max_objects=4), "1, 2 or 3, got 4"),
        (lambda: ShapesDataset(ShapesConfig(), "trian"), "split must be one of"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
