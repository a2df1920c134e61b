"""`pyramid evaluate lm`, on `mini` and on a small random model: figures that would show it if they were made up."""

import json

import pytest
import torch

from lm.backbone import LMConfig, make_backbone
from lm.model import PyramidLM
from lm.vocabulary import train_text_tokenizer
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig
from tasks import cli
from tasks.generation import (
    FIRST,
    Scenes,
    attribute_judge,
    given,
    score_diversity,
    score_drift,
    score_forcing,
    score_scenes,
    score_sets,
    score_tasks,
    score_writing,
)
from tasks.models import load_judge, load_lm


@pytest.fixture(scope="module")
def mini():
    return load_lm("mini")


@pytest.fixture(scope="module")
def random_lm():
    torch.manual_seed(0)
    tokenizer = PyramidTokenizer(TokenizerConfig(channels=(8, 16), depths=(1, 1), dim=32, depth=1)).eval()
    config = LMConfig(dim=32, num_layers=1, num_heads=2, mlp=32, text_size=300)
    text = train_text_tokenizer(["a red star"], 300)
    return PyramidLM(config, tokenizer, text, make_backbone(config, len(text))).eval()


def mean_colour(video):
    """Features (B, 6): mean and spread of the channels."""
    return torch.cat([video.mean(dim=(2, 3, 4)), video.std(dim=(2, 3, 4))], dim=1)


def test_prompts_are_judged_beside_real_clips(mini):
    judge = attribute_judge(load_judge("mini", mini.tokenizer.config))
    scenes = Scenes.of("one object", ShapesDataset(preset("mini"), "test"), 24)
    rows = score_scenes(mini, scenes, judge, [1, 5], decoding={"decoder": "next-level"})
    by = {(row["of"], row["detail"]): row for row in rows}
    assert by["real", None]["all"] == 1 and by["reconstructed", None]["all"] > 0.9
    assert by["generated", 1]["all"] < 0.4 < 0.8 < by["generated", 5]["all"]
    assert (by["generated", 1]["passes"], by["generated", 5]["passes"]) == (2, 10)
    assert (by["generated", 1]["tokens"], by["generated", 5]["tokens"]) == (2, 98)
    # Asked for other scenes, the same clips are wrong.
    other = Scenes(scenes.name, scenes.dataset, [*scenes.items[1:], scenes.items[0]])
    swapped = [{**item, "caption": scene["caption"]} for item, scene in zip(scenes.items, other.items, strict=True)]
    (row,) = score_scenes(mini, Scenes("swapped", scenes.dataset, swapped), judge, [5])[2:]
    assert row["all"] < 0.2


def test_scenes_of_a_number_of_objects():
    scenes = Scenes.of("two", ShapesDataset(preset("full"), "test"), 5, 2)
    assert [len(item["attributes"].objects) for item in scenes.items] == [2] * 5
    assert all(item["index"] >= FIRST for item in scenes.items) and scenes.video(0, 2).shape[0] == 2


def test_sets_of_clips():
    generator = torch.Generator().manual_seed(0)
    real, other, near, far, same = (torch.randn(400, 6, generator=generator) for _ in range(5))
    rows = score_sets(real, other, {"near": near, "far": far + 3, "one clip": same[:1].repeat(400, 1)})
    by = {row["of"]: row for row in rows}
    assert by["near"]["frechet"] < 2 * by["real"]["frechet"] + 0.2 and by["far"]["frechet"] > 40
    assert by["one clip"]["diversity"] == 0 and by["one clip"]["frechet"] > 4
    assert abs(by["far"]["diversity"] - by["real"]["diversity"]) < 0.3


def test_diversity_of_one_prompt(mini):
    prompts = ["a large red star moves left", "a small blue ring rests"]
    free = score_diversity(mini, prompts, mean_colour, samples=3)
    greedy = score_diversity(mini, prompts, mean_colour, samples=3, temperature=0, decoder="next-level", guidance=1.0)
    assert greedy < 0.01 < 0.1 < free


def clips(count=3):
    items = ShapesDataset(preset("mini"), "test").__getitems__(list(range(count)))
    return torch.stack([item["video"] for item in items]), [item["caption"] for item in items]


def test_tasks_beside_the_usual_guess(random_lm):
    names = ["animate", "interpolate", "inpaint", "outpaint", "refine", "upscale", "stylize"]
    rows = {
        row["task"]: row
        for row in score_tasks(random_lm, [clips()], names, features=mean_colour, real=mean_colour(clips(8)[0]))
    }
    assert list(rows) == names
    for task in ("animate", "interpolate", "inpaint", "outpaint"):
        # A random model writes noise: the guess is better, and both are figures of the unknown pixels alone.
        assert 0 < rows[task]["psnr_unknown"] < rows[task]["copied"] < 60
        assert rows[task]["frechet"] > rows[task]["frechet_copied"]
    assert rows["upscale"]["copied"] > 18 and "psnr_known" not in rows["upscale"]


def test_known_pixels_of_the_tasks(random_lm):
    video, _ = clips()
    for task, frames in (("animate", 1), ("interpolate", 2)):
        assert given(random_lm, task, video, torch.Generator())[1].float().sum() == 3 * frames * 32 * 32
    assert not given(random_lm, "refine", video, torch.Generator())[1].any()


def test_forcing(mini):
    video, captions = clips()
    row = score_forcing(mini, [(video, captions, [None] * 3)], judge=lambda truth, video: [{"all": True}] * len(truth))
    assert len(row["teacher_nats"]) == 5 and row["teacher_nats"][1] < 0.2
    assert row["block_psnr"] > row["free_psnr"] and row["block_all"] == row["free_all"] == 1


def test_drift_is_seen():
    generator = torch.Generator().manual_seed(0)

    def pieces(change):
        for index in range(60):
            yield torch.rand(1, 3, 8, 8, 8, generator=generator) * 0.5 + change * index / 60

    still, moving = (score_drift([pieces(change), pieces(change)], mean_colour, 8.0, window=9) for change in (0.0, 0.4))
    assert still["clips"] == 2 and still["windows"] == 2 * 8 and still["frames"] == 480
    assert still["frechet"] < 3 * still["floor"]
    assert moving["frechet"] > 10 * still["frechet"]
    with pytest.raises(ValueError, match="expected at least 120 frames, got 80"):
        score_drift([[torch.zeros(1, 3, 80, 8, 8)]], mean_colour, 8.0, window=9)


def test_writing_is_read(random_lm, monkeypatch):
    class Reader:
        """Reads the brightness of the last frame."""

        def characters(self, video):
            return ["dark/1" if clip[:, -1].mean() < 0 else "light/1" for clip in video]

    video = torch.cat([torch.full((2, 3, 9, 32, 32), value) for value in (-0.8, 0.8)])
    labels = ["dark/1", "dark/2", "light/1", "light/1"]
    asked, generate = [], random_lm.generate
    monkeypatch.setattr(random_lm, "generate", lambda texts, **more: asked.append(texts) or generate(texts, **more))
    rows = {row["of"]: row for row in score_writing(random_lm, [(video, ["a dot"] * 4, labels)], Reader())}
    assert asked == [["a dot"] * 4, [""] * 4, labels]
    assert rows["real"]["right"] == 0.75 and rows["real"]["alphabet"] == 1
    assert rows["left unfinished"]["right"] == 0.75 and set(rows) > {
        "written by class",
        "finished, no text",
        "finished, told what",
    }


def test_the_command(capsys, tmp_path):
    args = ["evaluate", "lm", "mini", "shapes", "--clips", "4", "--detail", "5", "--only", "prompts,forcing"]
    assert cli.main([*args, "--decoder", "next-level", "--out", str(tmp_path / "out"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.get("section") for row in rows] == ["prompts"] * 6 + ["forcing", None]
    protocol = rows[-1]["protocol"]
    assert protocol["judge"] == "mini" and len(protocol["judge_hash"]) == 12 and protocol["decoder"] == "next-level"
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"] == rows[:-1]
    assert "held-out combinations" in (tmp_path / "out" / "evaluation.txt").read_text()
    assert cli.main(["evaluate", "lm", "mini", "shapes", "--only", "beauty"]) == 2
    assert "--only: expected some of prompts, writing" in capsys.readouterr().err
