"""`pyramid words` and `pyramid data words` from the outside."""

from __future__ import annotations

import json

import made_models
import numpy as np
import pytest
import torch
from PIL import Image

from pyramid.data.shapes import ShapesDataset, preset
from pyramid.data.video import write_video
from pyramid.quantize import LevelConfig
from pyramid.spelling import spell
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig
from pyramid.words import WordTable
from tasks import cli
from tasks.models import load_tokenizer
from tasks.word_sheet import word_sheet

SMALL = {"channels": (8, 16), "depths": (1, 1), "dim": 24, "depth": 1, "latent_dim": 16, "height": 16, "width": 16}


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "in" / "clip.mp4"
    path.parent.mkdir()
    item = ShapesDataset(preset("mini"), "test")[0]
    write_video(path, item["video"], fps=8)
    return path


def run(capsys, *args) -> tuple[int, list[str], list[str]]:
    capsys.readouterr()
    code = cli.main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


@pytest.fixture(params=["residual", "average"])
def tokenizer(request):
    """Words on three levels, one of them with two times, bits between."""
    torch.manual_seed(0)
    levels = (
        LevelConfig("words", 1, 1, 1),
        LevelConfig("bits", 1, 2, 2),
        LevelConfig("words", 2, 2, 3),
        LevelConfig("words", 1, 2, 2),
        LevelConfig("bits", 2, 4, 4),
    )
    return PyramidTokenizer(TokenizerConfig(levels=levels, combination=request.param, **SMALL)).eval()


def test_what_is_spelt_is_what_is_encoded(tokenizer):
    video = torch.rand(1, 3, 12, 16, 16) * 2 - 1  # the last chunk is not whole
    chunks = list(spell(tokenizer, video, temperature=0.3, num_others=3))
    said = tokenizer.words(tokenizer.encode(video))[0]
    assert [[[word.word for word in level.words] for level in chunk] for chunk in chunks] == said
    assert [[level.number for level in chunk] for chunk in chunks] == [[1, 3, 4]] * 3
    assert [[level.grid.grid for level in chunk] for chunk in chunks][1] == [(1, 1, 1), (2, 2, 3), (1, 2, 2)]
    for word in (word for chunk in chunks for level in chunk for word in level.words):
        shares = [share for _, share in word.others]
        assert word.distance >= 0 and word.word not in dict(word.others) and len(shares) == 3
        assert 1 + 1e-5 >= word.probability >= shares[0] >= shares[1] >= shares[2] >= 0


def test_probabilities_are_those_of_all_words(tokenizer):
    video = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    (levels,) = spell(tokenizer, video, temperature=0.3)
    chunk, _ = tokenizer.quantize_chunk(video, None)
    query = chunk.queries[0][0, 0, 0, 0].double()
    distance = (tokenizer.table.embeddings.double() - query).square().sum(dim=1)
    share = torch.softmax(-distance / 0.3, dim=0)
    word = levels[0].words[0]
    assert word.word == tokenizer.table.words[int(share.argmax())]
    assert word.probability == pytest.approx(share.max().item(), rel=1e-3)
    assert word.distance == pytest.approx(distance.min().item(), rel=1e-3)


def test_what_cannot_be_spelt_is_refused(tokenizer):
    bits = PyramidTokenizer(TokenizerConfig(levels=(LevelConfig("bits", 1, 2, 2),), **SMALL))
    with pytest.raises(ValueError, match="expected a tokenizer with a level of words, got one without"):
        next(spell(bits, torch.zeros(1, 3, 1, 16, 16)))
    with pytest.raises(ValueError, match=r"expected one clip \(1, 3, T, H, W\), got \(2, 3, 1, 16, 16\)"):
        next(spell(tokenizer, torch.zeros(2, 3, 1, 16, 16)))
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        next(spell(tokenizer, torch.zeros(1, 3, 1, 16, 16), temperature=0))


def test_a_sheet_has_a_row_a_level_and_a_column_a_chunk_and_time(tokenizer):
    video = torch.rand(1, 3, 9, 16, 24) * 2 - 1
    chunks = list(spell(tokenizer, video))
    sheet = word_sheet(video[0], chunks, 8, panel=100)
    assert sheet.mode == "RGB" and sheet.size == (6 + 3 * (24 * 5 + 6), 6 + 3 * (20 + 16 * 5 + 6))
    pixels = np.asarray(sheet)
    frame = ((video[0, :, 0].permute(1, 2, 0) + 1) * 127.5).numpy()
    corner = pixels[6 + 20 + 6 : 6 + 20 + 9, 6 + 6 : 6 + 9].reshape(-1, 3)  # inside the second pixel, off every line
    assert np.abs(corner - frame[1, 1]).max() <= 1
    middle = pixels[6 + 20 : 6 + 20 + 80, 6 : 6 + 120]
    plain = np.kron(frame, np.ones((5, 5, 1)))
    assert np.abs(middle - plain)[30:50, 45:75].max() > 60  # a word stands there


def test_words_of_a_clip(capsys, clip, tmp_path):
    """With the shipped model mini, on a clip whose words are known."""
    code, out, _ = run(capsys, "words", "-m", "mini", clip)
    assert code == 0 and out[0] == f"{clip}:" and len(out) == 5
    assert out[4].startswith("  chunk 1, level 2: ") and out[4].count(" | ") == 3
    code, out, _ = run(capsys, "words", "-m", "mini", clip, "--json", "--others", "2", "--out", tmp_path / "sheet.png")
    record = json.loads(out[0])
    said = {word["word"] for level in record["chunks"][1] for word in level["words"]}
    table = load_tokenizer("mini").table
    assert said == set(table.ids_to_words(table.content_ids(ShapesDataset(preset("mini"), "test")[0]["caption"])))
    assert all(len(word["others"]) == 2 for word in record["chunks"][0][1]["words"])
    assert record["out"] == str(tmp_path / "sheet.png") and Image.open(tmp_path / "sheet.png").size[0] > 500
    code, _, err = run(capsys, "words", "-m", "mini", clip, "--out", tmp_path / "sheet.png")
    assert code == 2 and "exists already; give another --out, or --overwrite" in err[0]
    assert run(capsys, "words", "-m", "mini", clip, "--out", tmp_path / "sheet.png", "--overwrite")[0] == 0
    code, _, err = run(capsys, "words", "-m", "mini", clip, "--out", tmp_path / "sheet.mp4")
    assert code == 2 and "expected a .png or a folder, got .mp4" in err[0]


def test_a_table_of_any_text_model(capsys, tmp_path):
    folder = made_models.make_llama(tmp_path / "model")
    captions = tmp_path / "metadata.jsonl"
    captions.write_text('{"file_name": "a.mp4", "caption": "A quick brown fox"}\n\n{"file_name": "b.mp4"}\n')
    code, out, _ = run(
        capsys, "data", "words", folder, "--captions", captions, "--dim", 8, "--out", tmp_path / "w.st", "--json"
    )
    record = json.loads(out[-1])
    table = WordTable.load(tmp_path / "w.st")
    assert code == 0 and record["hash"] == table.hash and record["words"] == len(table)
    assert table.words[:3] == ("quick", "brown", "fox") and "star" in table.words and table.source == "model"
    (tmp_path / "list").write_text("red green\nblue\n")
    code, out, _ = run(
        capsys, "data", "words", folder, "--only", tmp_path / "list", "--space", "input", "--out", tmp_path / "v.st"
    )
    assert code == 0 and WordTable.load(tmp_path / "v.st").words == ("red", "green", "blue")
    assert "3 words of model" in out[-1]


def test_a_table_of_captions_alone(capsys, tmp_path):
    text = tmp_path / "captions.txt"
    text.write_text("".join(item["caption"] + "\n" for item in ShapesDataset(preset("mini")).describe(range(200))))
    code, out, _ = run(capsys, "data", "words", "captions", "--captions", text, "--out", tmp_path / "w.st")
    assert code == 0 and "words of captions" in out[-1] and "star" in WordTable.load(tmp_path / "w.st").words


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["captions"], "captions: expected --captions, and neither --only nor --space"),
        (["captions", "--captions", "x", "--space", "input"], "captions: expected --captions"),
        (["minilm", "--space", "latent"], "--space: expected sentence or input, got 'latent'"),
        (["nowhere/model"], "nowhere/model: expected the folder or hub id of a transformers text model"),
        (["captions", "--captions", "bad.jsonl"], "bad.jsonl, line 1: expected a JSON object, its caption a string"),
        (["captions", "--captions", "none.txt"], "none.txt"),
    ],
)
def test_tables_that_cannot_be_made(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    code, _, err = run(capsys, "data", "words", *args)
    assert code == 2 and len(err) == 1 and message in err[0]
    assert not (tmp_path / "runs").exists()
