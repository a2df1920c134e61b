"""Reading: captions, answers, how likely a label is; that a clip is read alike in any batch."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

from lm.backbone import LMConfig, make_backbone
from lm.curriculum import MOST_QUESTIONS
from lm.model import PyramidLM
from lm.reading import log_likelihoods, read
from lm.train import LMTraining, TrainLMConfig
from lm.train_data import teachable
from lm.vocabulary import train_text_tokenizer
from pyramid.data.folder import FolderDataset
from pyramid.data.grammar import either
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.optim import MuonAdamW
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig

VIDEO = TokenizerConfig(channels=(8, 16, 24), depths=(0, 1, 1), dim=32, depth=1, latent_dim=16)
QUESTIONS = ["what colour is the star?", "is there a ring?", "how does the very large orange square move?"]
TEXTS = ["red", "no", "it moves left"]


@pytest.fixture(scope="module")
def lm():
    torch.manual_seed(0)
    config = LMConfig(dim=64, num_layers=2, num_heads=2, mlp=96, text_size=300, max_text=40, history=1)
    text = train_text_tokenizer([*QUESTIONS, *TEXTS], 300)
    lm = PyramidLM(config, PyramidTokenizer(VIDEO), text, make_backbone(config, len(text)))
    for parameter in lm.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return lm.eval()


@pytest.fixture(scope="module")
def tokens(lm):
    return lm.tokenizer.encode(torch.rand(3, 3, 9, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1)


def ids(lm, texts):
    return [lm.text_ids(text) for text in texts]


def test_a_clip_is_read_alike_in_any_batch(lm, tokens):
    """Questions of other lengths stand behind pads, which nobody sees."""
    together = lm.ask(tokens, QUESTIONS)
    for row, question in enumerate(QUESTIONS):
        (alone,) = lm.ask(tokens[row : row + 1], question)
        assert alone.text == together[row].text
        assert alone.confidence == pytest.approx(together[row].confidence, rel=1e-3)


@torch.no_grad()
def test_likelihoods_are_those_of_the_loss(lm, tokens):
    """By cache, all labels at once, and by one pass as in training."""
    found = log_likelihoods(lm, read(lm, tokens, 2, "ask").asked(lm, ids(lm, QUESTIONS)), TEXTS)
    assert found.shape == (3, 3)
    for column, text in enumerate(TEXTS):
        for row in range(3):
            loss = lm.reading_loss(tokens[row : row + 1], ids(lm, [text]), 2, ids(lm, QUESTIONS[row : row + 1]))
            assert found[row, column] == pytest.approx(-float(loss) * (len(lm.text_ids(text)) + 1), rel=1e-4)


@torch.no_grad()
def test_questions_about_one_clip_do_not_see_each_other(lm, tokens):
    """All in one row, of several clips, is the mean over tokens of each by itself."""
    pairs = [(0, "red"), (0, "no"), (0, "it moves left"), (2, "red"), (2, "no")]
    questions = [QUESTIONS[place % 3] for place in range(5)]
    total = count = 0.0
    for (clip, text), question in zip(pairs, questions, strict=True):
        length = len(lm.text_ids(text)) + 1
        total += length * float(lm.reading_loss(tokens[clip : clip + 1], ids(lm, [text]), 2, ids(lm, [question])))
        count += length
    texts, clips = [text for _, text in pairs], [clip for clip, _ in pairs]
    together = lm.reading_loss(tokens, ids(lm, texts), 2, ids(lm, questions), clips)
    assert float(together) == pytest.approx(total / count, rel=1e-4)
    with pytest.raises(ValueError, match="reading_loss: expected a question for each of several texts of a clip"):
        lm.reading_loss(tokens, ids(lm, texts), 2, None, clips)


def test_what_is_said_has_the_probability_that_is_told(lm, tokens):
    short = copy.copy(lm)
    short.config = dataclasses.replace(lm.config, max_text=3)
    for answer, likely in zip(short.ask(tokens, "red?"), _greedy(short, tokens, "red?"), strict=True):
        assert answer.confidence == pytest.approx(likely, rel=1e-3)


def _greedy(lm, tokens, question):
    reading, said = read(lm, tokens, 2, "ask").asked(lm, ids(lm, [question] * 3)), torch.zeros(3, 0, dtype=torch.int64)
    sure = torch.ones(3)
    for _ in range(3):
        parts = [(reading.x, reading.intervals, reading.positions), reading.text(lm, said, reading.length)]
        out = lm.run(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))
        best = lm.backbone.get_output_embeddings()(out[:, -1]).softmax(dim=-1).max(dim=-1)
        done = (said == lm.text.eos_token_id).any(dim=1)
        sure = torch.where(done, sure, sure * best.values)
        said = torch.cat([said, best.indices[:, None]], dim=1)
    return sure.tolist()


def test_more_beams_find_likelier_texts(lm, tokens):
    short = copy.copy(lm)
    short.config = dataclasses.replace(lm.config, max_text=4)
    one, many = (short.ask(tokens, None, beams=beams) for beams in (1, 8))
    assert all(b.confidence >= a.confidence * 0.999 for a, b in zip(one, many, strict=True))
    assert any(b.confidence > a.confidence * 1.01 for a, b in zip(one, many, strict=True))
    assert [answer.text for answer in one] == short.caption(tokens)


def test_draws_are_of_the_seed(lm, tokens):
    first, again, other = (lm.caption(tokens, temperature=1.0, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    assert lm.caption(tokens[1:], temperature=1.0, seed=4) == first[1:]


def test_a_label_is_as_likely_as_its_text(lm, tokens):
    shares = lm.classify(tokens, TEXTS)
    assert shares.shape == (3, 3) and torch.allclose(shares.sum(dim=1), torch.ones(3))
    scores = log_likelihoods(lm, read(lm, tokens, 2, "ask").asked(lm, ids(lm, [either(TEXTS)] * 3)), TEXTS)
    assert torch.allclose(shares, scores.softmax(dim=1), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm, tokens: lm.ask(tokens, ["why?"]), "ask: expected one question a clip, 3, got 1"),
        (lambda lm, tokens: lm.ask(tokens, "why " * 60 + "?"), "ask: expected questions of at most 40 tokens"),
        (lambda lm, tokens: lm.ask(tokens[:0], "why?"), "ask: expected at least one clip, got none"),
        (lambda lm, tokens: lm.classify(tokens, ["red"]), r"at least two labels, each once, got \['red'\]"),
        (lambda lm, tokens: lm.classify(tokens, ["red", "red"]), "at least two labels, each once"),
        (lambda lm, tokens: lm.classify(tokens, ["red", "no " * 60], "why?"), "expected texts of fewer than 40 tokens"),
        (lambda lm, tokens: lm.caption(tokens, beams=0), "expected beams of at least 1"),
        (lambda lm, tokens: lm.caption(tokens, temperature=float("nan")), "expected beams of at least 1"),
        (lambda lm, tokens: lm.caption(tokens, beams=2, temperature=1.0), "expected one beam where text is drawn"),
    ],
)
def test_errors(lm, tokens, call, message):
    with pytest.raises(ValueError, match=message):
        call(lm, tokens)


def test_a_model_learns_tasks_besides(lm, tokens):
    """One that could not be asked: what it knew is as before, and the new task can be trained."""
    config = dataclasses.replace(lm.config, tasks=("generate", "caption"))
    torch.manual_seed(0)
    old = PyramidLM(config, lm.tokenizer, lm.text, make_backbone(config, len(lm.text))).eval()
    with pytest.raises(ValueError, match="task: this model knows generate, caption; got 'ask'"):
        old.ask(tokens, "why?")
    before = (old.caption(tokens), old.generate(["a star"], seed=2).flatten())
    with pytest.raises(ValueError, match="add_tasks: inpaint: expected a model with some of"):
        old.add_tasks(["ask", "inpaint"])
    old.add_tasks(["generate", "ask"])
    assert old.config.tasks == ("generate", "caption", "ask")
    assert old.caption(tokens) == before[0] and torch.equal(old.generate(["a star"], seed=2).flatten(), before[1])
    old.reading_loss(tokens, ids(old, TEXTS), 2, ids(old, QUESTIONS)).backward()
    assert old.special.weight.grad[old.vocabulary.task("ask") - old.vocabulary.num_text].abs().sum() > 0


def test_questions_are_learned(lm):
    """Two clips by heart: each question has another answer for each of them."""
    items = ShapesDataset(preset("mini")).__getitems__([0, 1])
    pairs = [{question: answer for question, answer in item["questions"] if "?" in question} for item in items]
    asked = [question for question in pairs[0] if pairs[1].get(question, pairs[0][question]) != pairs[0][question]]
    asked = asked[:3] or [either(["small", "large"])]
    torch.manual_seed(0)
    module = LMTraining(TrainLMConfig(tokenizer="-"), copy.deepcopy(lm))
    model = module.lm
    tokens = model.tokenizer.encode(torch.stack([item["video"] for item in items]))
    questions = [question for question in asked for _ in items]
    answers = [["left", "it is red", "a ring"][(i + row) % 3] for i in range(len(asked)) for row in range(2)]
    rows = torch.arange(2).repeat(len(asked))
    optimizer = MuonAdamW(module, (model.backbone.base_model,), lr=4e-3, weight_decay=0.0)
    for _ in range(80):
        optimizer.zero_grad()
        model.reading_loss(tokens[rows].truncate(2), ids(model, answers), 2, ids(model, questions)).backward()
        optimizer.step()
    said = model.eval().ask(tokens[rows], questions, 2)
    assert [answer.text for answer in said] == answers and min(answer.confidence for answer in said) > 0.5
    assert model.classify(tokens[rows], sorted(set(answers)), asked[0], 2)[0].argmax() == sorted(set(answers)).index(
        answers[0]
    )


def test_which_questions_a_step_asks(lm):
    module = LMTraining(TrainLMConfig(tokenizer="-"), lm)
    torch.manual_seed(0)
    pairs = [[("what?", "this"), ("why?", "so")], [], []]
    batch = {"caption": [""] * 3, "questions": pairs, "label": ["b", "c", None]}
    seen = [module._asked(batch) for _ in range(50)]
    assert {tuple(asked[2]) for asked in seen} == {()}
    assert {tuple(asked[1]) for asked in seen} == {(("b or c?", "c"),), (("c or b?", "c"),)}
    assert all(sorted(asked[0][:2]) == sorted(pairs[0]) and len(asked[0]) == 3 for asked in seen)
    assert {asked[0][0] for asked in seen} == set(pairs[0])
    assert module._asked({"caption": ["", ""]}) == [[], []]
    many = {"caption": [""], "questions": [[(f"is it {number}?", "no") for number in range(40)]]}
    found = [tuple(module._asked(many)[0]) for _ in range(20)]
    assert {len(asked) for asked in found} == {MOST_QUESTIONS} and len({frozenset(asked) for asked in found}) > 1
    lm.eval()


def test_questions_of_a_folder(tmp_path):
    row = {"file_name": "a.mp4", "questions": [["what is it?", "a star"]]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"file_name": "b.mp4"}) + "\n")
    dataset = FolderDataset(tmp_path, 9, (32, 32))
    assert [clip.questions for clip in dataset.clips] == [(("what is it?", "a star"),), ()]
    assert "ask" in teachable(dataset) and "ask" in teachable(ShapesDataset(preset("mini")))
    for wrong in ("what?", [["what?"]], [["what?", 3]], {"what?": "that"}):
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.mp4", "questions": wrong}))
        with pytest.raises(ValueError, match=r'line 1: expected "questions" to be a list of \[question, answer\], got'):
            FolderDataset(tmp_path, 9, (32, 32))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "b.mp4"}))
    assert "ask" not in teachable(FolderDataset(tmp_path, 9, (32, 32)))


def test_what_is_unlike_surprises(lm, tokens):
    """Row by row what the loss is of all hidden, without text."""
    found = lm.surprise(tokens)
    assert found.shape == (3,) and found.dtype == torch.float32
    rows = torch.cat([lm.surprise(tokens[row : row + 1]) for row in range(3)])
    assert torch.allclose(found, rows, rtol=1e-3)
    counts = [sum(pyramid.counts[level] for pyramid in tokens.pyramids) for level in range(2)]
    losses = lm.generation_loss(tokens[:1].truncate(2), [[]], 2, whole=1.0)
    blocks = [losses[level] * counts[level] for level in range(2)]  # the same grid in each chunk
    assert float(found[0]) == pytest.approx(float(sum(blocks)) / sum(counts), rel=1e-3)
