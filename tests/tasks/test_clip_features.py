"""Features of robot clips, on held-out clips; those lie beside the repository."""

import json
from pathlib import Path

import pytest
import torch

from tasks.clip_features import ClipFeatures, read_whole, retrieval, train_clip_features
from tasks.frechet import frechet_distance
from tasks.models import JUDGES, judge_folder

DATA = Path(__file__).parents[2] / "../shared/data"

shipped = pytest.mark.skipif(not (JUDGES / "robot_features").is_dir(), reason="the shipped features are absent")
robot = pytest.mark.skipif(not (DATA / "manifest.jsonl").is_file(), reason="needs ../shared/data")


@pytest.fixture(scope="module")
def network():
    return ClipFeatures.load(judge_folder("robot_features"))


@pytest.fixture(scope="module")
def clips():
    lines = [json.loads(line) for line in (DATA / "manifest.jsonl").read_text(encoding="utf8").splitlines()]
    held_out = [DATA / row["path"] for row in lines if row["subset"] == "droid" and row["split"] == "val"]
    return read_whole(held_out[::4])


@shipped
@robot
def test_windows_of_a_clip_are_alike_and_have_a_direction(network, clips):
    figures = retrieval(network, clips)
    assert figures["found"] >= 0.6  # chance: one in twenty
    assert figures["order of a pair"] >= 0.6


@shipped
@robot
def test_noise_and_stillness_are_far_from_clips(network, clips):
    half = len(clips) // 2
    video = torch.stack([clip[:, :17] / 127.5 - 1 for clip in clips])
    features = network.features(video)
    near = frechet_distance(features[:half], features[half:])
    noisy = (video + 0.3 * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    assert frechet_distance(features[:half], network.features(noisy[half:])) > near
    still = network.features(video[:, :, :1].expand_as(video))
    assert frechet_distance(features, still) > 0.2 * near


def test_any_clip_is_taken():
    network = ClipFeatures().eval()
    for shape in ((2, 3, 1, 64, 112), (1, 3, 5, 90, 160), (1, 3, 17, 32, 32)):
        features = network.features(torch.zeros(shape))
        assert features.shape == (shape[0], 128) and features.dtype == torch.float32
    with pytest.raises(ValueError, match=r"expected clips \(B, 3, T, H, W\), got \(3, 17, 64, 112\)"):
        network(torch.zeros(3, 17, 64, 112))


def test_it_trains_and_is_saved(tmp_path, capsys):
    clips = [torch.randint(256, (3, 20, 64, 112), dtype=torch.uint8) for _ in range(4)]
    train_clip_features(tmp_path, clips, minutes=0.01)
    assert "steps of 4 clips" in capsys.readouterr().out
    again = ClipFeatures.load(tmp_path)
    assert set(retrieval(again, clips)) == {"found", "order", "order of a pair"}
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="expected a pyramid.clip_features, got other"):
        ClipFeatures.load(tmp_path)
