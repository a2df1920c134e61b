"""The judge of scenes: what it says of the shipped weights holds on other clips than those of benchmarks/judges.py."""

from dataclasses import replace

import pytest
import torch

from pyramid.data.shapes import COLOURS, ObjectAttributes, SceneAttributes, ShapesDataset, preset
from tasks.models import JUDGES, judge_folder, load_tokenizer, shipped_names
from tasks.scene_judge import (
    FoundObject,
    FoundScene,
    SceneJudge,
    agreement_with,
    objects_agreement,
    render,
    train_scene_judge,
)

shipped = pytest.mark.skipif(not (JUDGES / "shapes_judge").is_dir(), reason="the shipped judge is absent")


@pytest.fixture(scope="module")
def judge():
    return SceneJudge.load(judge_folder("shapes_judge"))


def share(judge, items, *names):
    found = judge.scenes(torch.stack([item["video"] for item in items]))
    rows = [agreement_with(item["attributes"], seen) for item, seen in zip(items, found, strict=True)]
    return sum(all(row[name] for name in names) for row in rows) / len(rows)


@shipped
@pytest.mark.parametrize("split", ["test", "combinations"])
def test_it_is_right_about_one_object(judge, split):
    items = ShapesDataset(preset("single"), split).__getitems__(range(7000, 7048))
    assert share(judge, items, "shape", "colour", "motion") >= 0.85
    assert share(judge, items, "alone") >= 0.9


@shipped
def test_it_is_right_about_two_objects_and_their_relation(judge):
    data = ShapesDataset(preset("full"), "test")
    two = [item["index"] for item in data.describe(range(7000, 7150)) if len(item["attributes"].objects) == 2]
    items = data.__getitems__(two[:40])
    assert share(judge, items, "shape", "colour", "motion") >= 0.6
    assert share(judge, items, "relation") >= 0.9
    # The same clips do not show other scenes.
    others = [
        item | {"attributes": other["attributes"]} for item, other in zip(items, items[1:] + items[:1], strict=True)
    ]
    assert share(judge, others, "shape", "colour", "motion") <= 0.1


@shipped
@pytest.mark.skipif("shapes" not in shipped_names(), reason="the shipped tokenizer is absent")
def test_reconstructions_are_read_nearly_as_well(judge):
    tokenizer = load_tokenizer("shapes")
    items = ShapesDataset(preset("single"), "test").__getitems__(range(7100, 7124))
    again = tokenizer.decode(tokenizer.encode(torch.stack([item["video"] for item in items])))
    assert share(judge, [item | {"video": video} for item, video in zip(items, again, strict=True)], "shape") >= 0.85


@shipped
def test_centres_are_where_the_objects_are(judge):
    clips = render(ShapesDataset(preset("single"), "test"), range(7200, 7216))
    found = judge.scenes(clips["video"] / 127.5 - 1)
    for row, scene in enumerate(found):
        k = int((clips["shape"][row] >= 0).nonzero())
        centre = {thing.colour: thing.centre for thing in scene.objects}[COLOURS[k]]
        assert (torch.tensor(centre) - clips["track"][row, 0, k]).abs().max() < 0.08


@shipped
def test_features_tell_scenes_apart_and_do_not_depend_on_the_batch(judge):
    items = ShapesDataset(preset("full"), "test").__getitems__(range(7300, 7308))
    video = torch.stack([item["video"] for item in items])
    features = judge.features(video)
    assert features.shape == (8, 192) and features.dtype == torch.float32
    assert torch.allclose(judge.features(video, batch_size=3), features, atol=1e-4)
    assert torch.pdist(features).min() > 0.1


def test_what_was_asked_is_compared_object_by_object():
    red = ObjectAttributes("star", "red", "small", "left")
    blue = ObjectAttributes("ring", "blue", "medium", "rests")
    scene = SceneAttributes((red, blue), "dotted", relation="left of")
    seen = [
        FoundObject("blue", "ring", "medium", "rests", (0.8, 0.5), 0.9),
        FoundObject("red", "star", "small", "left", (0.2, 0.5), 0.8),
    ]
    found = FoundScene(tuple(seen), "dotted", "static")
    everything = dict.fromkeys(("shape", "colour", "size", "motion", "relation", "all"), True)
    assert agreement_with(scene, found) == everything
    swapped = {"right of": False, "above": False, "below": False}
    for relation, right in swapped.items():
        assert agreement_with(replace(scene, relation=relation), found) == everything | {
            "relation": right,
            "all": right,
        }
    wrong = replace(found, objects=(replace(seen[0], motion="up"), seen[1]))
    assert agreement_with(scene, wrong) == everything | {"motion": False, "all": False}
    assert objects_agreement(scene, wrong)[1] == {"colour": True, "shape": True, "size": True, "motion": False}
    alone = SceneAttributes((red,), "dotted")
    assert agreement_with(alone, found)["all"] and not agreement_with(alone, found)["alone"]
    nothing = FoundScene((), "dotted", "static")
    assert not any(agreement_with(scene, nothing).values())
    with pytest.raises(ValueError, match="relation must be one of"):
        agreement_with(replace(scene, relation="near"), found)


@pytest.mark.skipif("shapes" not in shipped_names(), reason="the shipped tokenizer is absent")
def test_it_trains_and_is_saved(tmp_path, capsys):
    train_scene_judge(tmp_path, load_tokenizer("shapes"), minutes=0.02, num_reconstructed=8)
    assert "steps of 32 clips" in capsys.readouterr().out
    again = SceneJudge.load(tmp_path)
    assert len(again.scenes(torch.zeros(2, 3, 17, 64, 64))) == 2
    with pytest.raises(ValueError, match=r"expected clips \(B, 3, 17, 64, 64\), got \(1, 3, 9, 64, 64\)"):
        again(torch.zeros(1, 3, 9, 64, 64))
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="expected a pyramid.scene_judge, got other"):
        SceneJudge.load(tmp_path)
