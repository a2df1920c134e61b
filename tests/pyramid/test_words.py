"""Invariant 6: words round-trip as text, exactly."""

import pytest
import torch
from safetensors.torch import save_file

from pyramid.quantize import WordQuantizer
from pyramid.words import WordTable


@pytest.fixture(scope="module")
def table():
    return WordTable.load()


def test_every_word_round_trips_as_text(table):
    ids = list(range(len(table)))
    text = table.ids_to_text(ids)
    assert table.text_to_ids(text) == ids
    assert all(word and word == word.lower() and not any(c.isspace() for c in word) for word in table.words)


def test_unknown_words_are_named(table):
    with pytest.raises(ValueError, match="expected words of the table, got 'qwertz'"):
        table.text_to_ids("red qwertz")


@pytest.mark.parametrize("i", [-1, 4096])
def test_ids_out_of_range_are_refused(table, i):
    with pytest.raises(ValueError, match=f"ids must be from 0 to 4095, got {i}"):
        table.ids_to_text([0, i])


def test_embeddings_are_centred_and_distinct(table):
    assert table.embeddings.dtype == torch.float32
    assert table.embeddings.mean(dim=0).abs().max() < 1e-3
    assert abs(table.embeddings.square().sum(dim=1).mean().item() - 1) < 1e-2
    assert len(table.embeddings.unique(dim=0)) == len(table)


def test_the_shipped_table_is_the_one_that_models_were_trained_on(table):
    assert table.hash == "81b84719fa9dea76"


def test_content_words_of_a_caption(table):
    ids = table.content_ids("A small red star moves left on a striped background, a star!")
    assert [table.words[i] for i in ids] == ["small", "red", "star", "left", "striped"]
    assert table.content_ids("") == [] and table.content_ids("zzyzx") == []


def test_save_and_load(table, tmp_path):
    table.save(tmp_path / "words.safetensors")
    again = WordTable.load(tmp_path / "words.safetensors")
    assert again.hash == table.hash and again.words == table.words and again.source == table.source
    assert torch.equal(again.embeddings, table.embeddings)


def test_who_may_read_a_saved_table_is_what_the_umask_says(table, tmp_path):
    table.save(tmp_path / "words.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "words.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_same_hash_gives_the_same_ids(tmp_path):
    """A table that half precision cannot hold is rounded when it is made, not when it is saved."""
    rows = 1 + 1e-4 * torch.randn(300, 4)
    table = WordTable(tuple(f"w{i}" for i in range(300)), rows, torch.zeros(8), torch.randn(8, 4), "test")
    table.save(tmp_path / "words")
    again = WordTable.load(tmp_path / "words")
    queries = 1 + 1e-4 * torch.randn(1000, 4)
    assert again.hash == table.hash and torch.equal(again.basis, table.basis)
    assert torch.equal(*(WordQuantizer(t).codes_to_ids(queries) for t in (table, again)))


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no file"):
        WordTable.load(tmp_path / "none")
    (tmp_path / "text").write_text("no table, but long enough to be read as a header")
    with pytest.raises(ValueError, match=f"WordTable.load: {tmp_path / 'text'}: "):
        WordTable.load(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="expected pyramid.words version 1"):
        WordTable.load(tmp_path / "other")
