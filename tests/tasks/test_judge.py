import pytest
import torch

from pyramid.data.shapes import ShapesConfig
from tasks.judge import ATTRIBUTES, Judge, agreement, judge_accuracy, train_judge


def test_the_judge_learns_and_is_saved(tmp_path):
    torch.manual_seed(0)
    untrained = judge_accuracy(Judge().eval(), ShapesConfig(), count=60)
    figures = train_judge(tmp_path, steps=40, batch_size=16)
    assert set(figures) == {"shape", "colour", "motion", "size", "all"}
    assert figures["colour"] > untrained["colour"] + 0.2
    again = Judge.load(tmp_path)
    video = torch.zeros(2, 3, 9, 32, 32)
    assert [set(row) for row in again.attributes(video)] == [set(ATTRIBUTES)] * 2


def test_other_clip_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected clips \(B, 3, 9, 32, 32\), got \(1, 3, 9, 64, 64\)"):
        Judge()(torch.zeros(1, 3, 9, 64, 64))
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="expected a pyramid.judge"):
        Judge.load(tmp_path)


def test_agreement_counts_all_attributes_together():
    truth = [{"shape": "star", "colour": "red", "motion": "left"}] * 2
    found = [truth[0], {"shape": "star", "colour": "blue", "motion": "left"}]
    assert agreement(found, truth) == {"shape": 1.0, "colour": 0.5, "motion": 1.0, "all": 0.5}
    assert agreement([{}, {}], truth)["all"] == 0.0  # nothing said is nothing right
