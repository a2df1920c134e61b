"""Training the words alone, the words of classes, and clips moved at random."""

from __future__ import annotations

import json

import pytest
import tiny_run
import torch

from pyramid.data.jitter import jitter
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.semantic import SemanticConfig, SemanticObjective
from pyramid.tokenizer import PyramidTokenizer
from pyramid.train import prepare, train_tokenizer
from pyramid.words import WordTable


def batch():
    items = ShapesDataset(preset("mini", height=16, width=16, num_frames=5)).__getitems__(range(4))
    return {"video": torch.stack([i["video"] for i in items]), "caption": [i["caption"] for i in items]}


ENCODER = {"encoder.frames", "encoder.group", "encoder.latents"}
LATENT = {"encoder.head", "encoder.linear"}


@pytest.mark.parametrize(
    ("learns", "parts"),
    [("reader", {"reader"}), ("words", {"reader", *ENCODER}), ("encoder", {"reader", *ENCODER, *LATENT})],
)
def test_only_what_is_named_learns(learns, parts, tmp_path):
    start = tmp_path / "start"
    first = PyramidTokenizer(tiny_run.config().model)
    first.save_pretrained(start)
    run = tiny_run.config(f"learns={learns}", f"initialize={start}", "run.max_steps=4", "run.ema_decay=0")
    train_tokenizer(run, tmp_path / "out")
    found = PyramidTokenizer.from_pretrained(tmp_path / "out")
    changed = {
        name.split(".")[0] + ("." + name.split(".")[1] if name.startswith("encoder") else "")
        for name, value in found.state_dict().items()
        if not torch.equal(value, first.state_dict()[name])
    }
    assert changed == parts
    assert "words_hit" in (tmp_path / "out" / "metrics.csv").read_text().splitlines()[0]


def test_words_are_learned_as_in_a_whole_step():
    """The loss is the semantic term of `TokenizerTraining`, and descending it names what captions say."""
    items = batch()
    config = tiny_run.config("learns=words", "data.image_share=0")
    module = prepare(config)[0]
    module.log_dict = lambda *args, **kwargs: None
    loss = module.objective(items)
    whole = prepare(tiny_run.config("data.image_share=0"))[0]
    whole.tokenizer.load_state_dict(module.tokenizer.state_dict())
    out = whole.tokenizer(items["video"], torch.full((4,), 4))
    torch.testing.assert_close(loss, whole.losses(out, items["video"], items)["semantic"])
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        module.objective(items).backward()
        optimizer.step()
    assert module.objective(items) < 0.5 * loss


def test_a_tokenizer_without_a_reader_is_refused():
    with pytest.raises(
        ValueError, match=r"learns: expected levels of words and a reader of them for 'words', got none"
    ):
        prepare(tiny_run.config("learns=words", "model.reader_depth=0"))


def test_classes_have_words_of_their_own_and_others_are_never_asked_for(tmp_path):
    table = WordTable.load()
    file = tmp_path / "classes.json"
    file.write_text(json.dumps({"a": ["river", "music"], "b": ["music", "paper"]}), encoding="utf8")
    config = SemanticConfig(class_words=str(file), ignore=("large",))
    said = {"caption": ["a large red star", "a large red star", ""], "label": ["a", "b", None]}
    sets = SemanticObjective(config, table).lesson(said, 9).sets
    words = [[table.words[index] for index in row] for row in sets]
    assert words == [["red", "star", "river", "music"], ["red", "star", "music", "paper"], []]
    assert [len(row) for row in SemanticObjective(config, table).lesson(said, 3).sets] == [3, 3, 0]
    for text, message in (
        ('{"a": ["qqqq"]}', "expected words of the table, got 1 others, such as 'qqqq'"),
        ('["a"]', "expected {"),
        ("{", "expected JSON of the words of each class"),
    ):
        file.write_text(text, encoding="utf8")
        with pytest.raises(ValueError, match=message):
            SemanticObjective(config, table)


def test_a_clip_is_moved_as_one():
    torch.manual_seed(0)
    still = torch.rand(3, 3, 1, 32, 32).mul(2).sub(1).expand(-1, -1, 5, -1, -1)
    moved = jitter(still, 1.0, torch.Generator().manual_seed(1))
    assert moved.shape == still.shape and moved.abs().max() <= 1
    torch.testing.assert_close(moved, moved[:, :, :1].expand_as(moved))
    assert (moved - still).abs().mean() > 0.1
    assert torch.equal(moved, jitter(still, 1.0, torch.Generator().manual_seed(1)))
    assert jitter(still, 0.0) is still
    smooth = torch.linspace(-1, 1, 32).expand(1, 3, 2, 32, 32)
    assert (
        jitter(smooth, 0.1, torch.Generator().manual_seed(1)) - smooth
    ).abs().max() < 0.15  # a little moves a little
