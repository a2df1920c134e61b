"""The semantic objective as configs put it together, through the training step."""

import dataclasses
import itertools

import made_models
import pytest
import torch

from pyramid.config import load
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.semantic import SemanticConfig, SemanticObjective, dynamic_weight, position_groups
from pyramid.tokenizer import PyramidTokenizer
from pyramid.train import TokenizerTraining, TrainTokenizerConfig, train_tokenizer
from pyramid.vocabulary import build_word_table, learn_word_table

SMALL = {
    "model": {"channels": [16, 32, 48], "depths": [0, 1, 1], "dim": 64, "depth": 1, "latent_dim": 32},
    "data": {"num_clips": 64, "num_val": 4},
    "run": {"max_minutes": 0, "max_steps": 2, "batch_size": 4, "precision": "fp32", "device": "cpu"},
}


def config(*overrides):
    return load(TrainTokenizerConfig, SMALL, overrides=overrides)


@pytest.fixture(scope="module")
def batch():
    items = ShapesDataset(preset("mini")).__getitems__(range(4))
    captions = [item["caption"] for item in items]
    return {"video": torch.stack([i["video"] for i in items]), "caption": captions, "label": ["star", "ring"] * 2}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return made_models.make_clip(tmp_path_factory.mktemp("clip"))


def step(cfg, batch):
    torch.manual_seed(0)
    module = TokenizerTraining(cfg)
    out = module.tokenizer(batch["video"], torch.full((4,), 5))
    return module, out, module.losses(out, batch["video"], batch)


@pytest.mark.parametrize(
    ("objective", "teacher"),
    [
        *itertools.product(["set", "independent", "average", "set+average"], ["caption", "label", "clip"]),
        *itertools.product(["phrases"], ["caption", "label"]),
    ],
)
def test_every_objective_learns_from_every_teacher(batch, clip_folder, objective, teacher):
    model = [f"semantic.model={clip_folder}"] if teacher == "clip" else []
    module, _, terms = step(config(f"semantic.objective={objective}", f"semantic.teacher={teacher}", *model), batch)
    assert terms["semantic"] > 0 and 0 <= terms["words_hit"] <= 1
    terms["semantic"].backward()
    for index, asked in enumerate(module.tokenizer.reader.questions.grad.split([1, 4])):
        assert asked.abs().sum() > 0, index
    assert not any("semantic" in name for name in module.state_dict())  # a teacher is no part of what is trained


@pytest.mark.parametrize("objective", ["set", "independent"])
def test_one_clip_s_words_are_learned(batch, objective):
    """Descending the objective alone: a set covers the caption, independent targets name its top word everywhere."""
    module = TokenizerTraining(config(f"semantic.objective={objective}"))
    one = {name: values[:1] for name, values in batch.items()}
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    for _ in range(80):
        terms = module.losses(module.tokenizer(one["video"], torch.tensor([5])), one["video"], one)
        optimizer.zero_grad()
        terms["semantic"].backward()
        optimizer.step()
    assert terms["words_hit"] == 1.0 if objective == "set" else terms["words_hit"] < 0.6


def test_regions_change_what_the_second_level_is_asked(batch, clip_folder, monkeypatch):
    cfg = config("semantic.objective=independent", "semantic.teacher=clip", f"semantic.model={clip_folder}")
    module, out, terms = step(cfg, batch)
    asked = []
    teacher = module.semantic.teacher
    regions = teacher.regions
    monkeypatch.setattr(
        teacher, "regions", lambda video, grid: asked.append((video.shape[2], tuple(grid))) or regions(video, grid)
    )
    module.losses(out, batch["video"], batch)
    assert asked == [(1, (1, 2, 2)), (8, (1, 2, 2))]  # of both chunks the level of four cells alone
    monkeypatch.setattr(teacher, "regions", lambda video, grid: None)
    assert module.losses(out, batch["video"], batch)["semantic"] != terms["semantic"]


def test_the_dynamic_weight_keeps_the_two_losses_alike():
    appearance, semantic = torch.tensor(3.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    weight = dynamic_weight(appearance, semantic)
    assert weight == 6 and not weight.requires_grad
    (weight * semantic).backward()
    assert semantic.grad == 6 and appearance.grad is None
    assert dynamic_weight(appearance, torch.tensor(0.0)) == 0


def test_the_dynamic_weight_is_used(batch, monkeypatch):
    totals = []
    for dynamic in (True, False):
        torch.manual_seed(0)
        module = TokenizerTraining(config(f"semantic.dynamic={dynamic}", "loss.full_detail=1", "loss.unquantized=0"))
        monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
        logged = {}
        monkeypatch.setattr(module, "log_dict", lambda terms, logged=logged, **kwargs: logged.update(terms))
        total = module.objective(batch)
        w = module.config.loss
        appearance = (
            w.reconstruction * logged["train/reconstruction"]
            + w.quantizer * logged["train/quantizer"]
            + w.latent * logged["train/latent"]
        )
        pull = appearance / logged["train/semantic"] if dynamic else 1.0
        torch.testing.assert_close(total, appearance + w.semantic * pull * logged["train/semantic"])
        totals.append(total.item())
    assert totals[0] != totals[1]


def test_a_run_with_a_table_and_a_teacher_of_its_own(tmp_path, clip_folder):
    """The whole way: a table on disk, CLIP as the teacher, SPAE's objective and combination; then the folder."""
    build_word_table(clip_folder, dim=8, num_words=40).save(tmp_path / "words")
    cfg = config(
        f"words={tmp_path / 'words'}",
        "model.combination=average",
        "semantic.objective=independent",
        "semantic.teacher=clip",
        f"semantic.model={clip_folder}",
        "semantic.dynamic=true",
    )
    train_tokenizer(cfg, tmp_path / "run")
    tokenizer = PyramidTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer.table.source == clip_folder.name and tokenizer.config.combination == "average"
    assert load(TrainTokenizerConfig, tmp_path / "run" / "train_config.yaml") == cfg


def test_a_table_learned_from_captions_trains(batch, tmp_path):
    captions = [item["caption"] for item in ShapesDataset(preset("mini")).describe(range(300))]
    learn_word_table(captions).save(tmp_path / "words")
    _, _, terms = step(config(f"words={tmp_path / 'words'}"), batch)
    assert terms["semantic"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"objective": "chance"},
            "objective must be set or phrases or independent or average or set.average, got 'chance'",
        ),
        ({"teacher": "clip"}, "model must be the CLIP model's folder or hub id, got None"),
        ({"thresholds": ()}, r"thresholds must be one or more from above 0 to 1, got \(\)"),
        ({"thresholds": (0.9, 0.0)}, "thresholds must be"),
        ({"objective": "phrases", "teacher": "clip", "model": "m"}, "teacher must be caption or label for phrases"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"average": -1.0}, "average must be at least 0, got -1.0"),
    ],
)
def test_configs_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SemanticConfig(), **change)


def test_what_is_said_of_one_thing_is_one_phrase(tmp_path):
    table = PyramidTokenizer(config().model).table
    file = tmp_path / "classes.json"
    file.write_text('{"x": ["river"]}', encoding="utf8")
    cfg = SemanticConfig(objective="phrases", ignore=("camera",), class_words=str(file))
    said = {
        "caption": ["a small red star rests left of a small blue ring, the camera pans left", "red", ""],
        "label": ["x", "y", None],
    }
    phrases = SemanticObjective(cfg, table).lesson(said, 19).phrases
    words = [[[table.words[index] for index in phrase] for phrase in clip] for clip in phrases]
    assert words[0] == [
        ["small", "red", "star", "rests", "left"],
        ["small", "blue", "ring"],
        ["pans", "left"],
        ["river"],
    ]
    assert [[phrase for phrase in clip if phrase] for clip in words[1:]] == [[["red"]], []]
    assert SemanticObjective(SemanticConfig(), table).lesson({"caption": ["red"]}, 5).phrases is None


def test_groups_are_the_cells_of_a_level_at_one_time():
    assert position_groups([(1, 1, 1), (1, 2, 3), (2, 2, 2)]) == [range(1, 7), range(7, 11), range(11, 15)]
    assert position_groups([(1, 1, 1), (3, 1, 1)]) == []
