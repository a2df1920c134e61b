"""The judge of handwriting, on drawers it never saw; the strokes lie beside the repository."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pyramid.data.ink import InkConfig, render_ink
from pyramid.data.omniglot import find_drawings, read_strokes
from tasks.models import JUDGES, judge_folder, load_tokenizer, shipped_names
from tasks.writing_judge import WritingJudge, train_writing_judge

STROKES = sorted((Path(__file__).parents[2] / "../shared/data/omniglot").glob("strokes_background_small*.zip"))

shipped = pytest.mark.skipif(not (JUDGES / "handwriting_judge").is_dir(), reason="the shipped judge is absent")
strokes = pytest.mark.skipif(not STROKES, reason="needs ../shared/data")


@pytest.fixture(scope="module")
def judge():
    return WritingJudge.load(judge_folder("handwriting_judge"))


@pytest.fixture(scope="module")
def written():
    """Clips (B, 3, 17, 64, 64) by drawers 17 to 20, and what they wrote."""
    drawings = [drawing for drawing in find_drawings(STROKES)[0] if drawing.split == "val"][::12]
    rng = np.random.default_rng(1)
    clips = []
    for drawing in drawings:
        with zipfile.ZipFile(drawing.archive) as archive:
            clips.append(np.stack(list(render_ink(read_strokes(archive, drawing), InkConfig(), rng)[1])))
    video = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3) / 127.5 - 1
    return video, [drawing.label for drawing in drawings]


@shipped
@strokes
def test_it_reads_what_others_wrote(judge, written):
    video, labels = written
    assert len(judge.labels) == 242
    found = judge.characters(video)
    assert sum(a == b for a, b in zip(found, labels, strict=True)) / len(labels) >= 0.7
    half = judge.characters(video[:, :, :7])  # half of the character is not the character
    assert sum(a == b for a, b in zip(half, labels, strict=True)) / len(labels) <= 0.5


@shipped
@strokes
def test_features_see_the_writing_not_only_its_end(judge, written):
    video = written[0][:16]
    features = judge.features(video)
    assert features.shape == (16, 192) and features.isfinite().all()
    at_once = video[:, :, -1:].expand_as(video)
    assert (judge.features(at_once) - features).norm(dim=1).min() > 0.1
    assert torch.allclose(judge.features(video, batch_size=5), features, atol=1e-4)


def test_other_clips_are_refused():
    with pytest.raises(ValueError, match=r"expected clips \(B, 3, T, 64, 64\), got \(1, 3, 9, 32, 32\)"):
        WritingJudge(["Greek/character01"]).characters(torch.zeros(1, 3, 9, 32, 32))


@strokes
@pytest.mark.skipif("handwriting" not in shipped_names(), reason="the shipped tokenizer is absent")
def test_it_trains_and_is_saved(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tasks.writing_judge.FIRST_DRAWN", 48)
    train_writing_judge(tmp_path, STROKES, load_tokenizer("handwriting"), minutes=0.02, num_reconstructed=4)
    assert "steps of 128 pictures" in capsys.readouterr().out
    again = WritingJudge.load(tmp_path)
    assert set(again.characters(torch.zeros(2, 3, 17, 64, 64))) <= set(again.labels)
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="expected a pyramid.writing_judge, got other"):
        WritingJudge.load(tmp_path)
