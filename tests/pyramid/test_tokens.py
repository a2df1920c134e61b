import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pyramid.tokens import TokenPyramid, concatenate_chunks


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    grids = [[(1, 1, 1), (1, 2, 2), (1, 4, 4)], [(1, 1, 1), (1, 2, 2), (2, 4, 4)]]
    ids = tuple(tuple(torch.randint(0, 1 << 40, (2, *grid), generator=generator) for grid in chunk) for chunk in grids)
    return TokenPyramid(ids, num_frames=9, height=32, width=30)


def same(a, b):
    sizes = (a.num_frames, a.height, a.width) == (b.num_frames, b.height, b.width)
    pairs = zip(a.ids, b.ids, strict=True)
    return sizes and all(torch.equal(x, y) for p, q in pairs for x, y in zip(p, q, strict=True))


def test_flatten_and_back(tokens):
    flat = tokens.flatten()
    assert flat.shape == (2, 21 + 37) and tokens.num_tokens() == 58 and tokens.num_tokens(2) == 10
    assert same(tokens, TokenPyramid.unflatten(flat, tokens.pyramids, num_frames=9, height=32, width=30))
    with pytest.raises(ValueError, match=r"expected ids \(B, 58\), got \(2, 57\)"):
        TokenPyramid.unflatten(flat[:, 1:], tokens.pyramids, num_frames=9, height=32, width=30)


def test_save_and_load(tokens, tmp_path):
    tokens.save(tmp_path / "a.safetensors")
    assert same(tokens, TokenPyramid.load(tmp_path / "a.safetensors"))
    with pytest.raises(FileExistsError, match="exists already"):
        tokens.save(tmp_path / "a.safetensors")
    tokens.truncate(1).save(tmp_path / "a.safetensors", overwrite=True)
    assert TokenPyramid.load(tmp_path / "a.safetensors").num_levels == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]  # no half-written file stays


def test_written_format_is_version_1(tokens, tmp_path):
    """The golden layout: chunk, level, t, h, w. A change here needs a new format version."""
    tokens.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
        assert metadata["format"] == "pyramid.tokens" and metadata["version"] == "1"
        assert json.loads(metadata["grids"])[1] == [[1, 1, 1], [1, 2, 2], [2, 4, 4]]
        ids = file.get_tensor("ids")
    assert ids.dtype == torch.int64
    assert ids[0, 21 + 5 + 16 + 4 + 3] == tokens.ids[1][2][0, 1, 1, 3]


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no file"):
        TokenPyramid.load(tmp_path / "none")
    (tmp_path / "text").write_text("not tokens, but long enough to be read as a header")
    with pytest.raises(ValueError, match="expected safetensors"):
        TokenPyramid.load(tmp_path / "text")
    save_file({"ids": torch.zeros(1, 1, dtype=torch.int64)}, tmp_path / "other")
    with pytest.raises(ValueError, match="expected pyramid.tokens version 1"):
        TokenPyramid.load(tmp_path / "other")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"grids": None}, "KeyError.*grids"),
        ({"grids": "[[[1, 1]]]"}, "TypeError"),
        ({"grids": "nonsense"}, "JSONDecodeError"),
        ({"height": "tall"}, "ValueError"),
        ({"num_frames": "1"}, "at least one frame for each of 2 chunks .*got 1 frames"),
        ({"grids": "[[[1, 1, 1]]]"}, r"expected ids \(B, 1\), got \(2, 58\)"),
    ],
)
def test_files_with_broken_geometry_are_refused(tokens, tmp_path, changes, message):
    path = tmp_path / "a.safetensors"
    tokens.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = {name: text for name, text in (file.metadata() | changes).items() if text is not None}
        save_file({"ids": file.get_tensor("ids")}, path, metadata=metadata)
    with pytest.raises(ValueError, match=rf"TokenPyramid.load: {path}: expected grids and sizes.*{message}"):
        TokenPyramid.load(path)


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.int64)


@pytest.mark.parametrize(
    "ids, sizes, message",
    [
        (((torch.zeros(1, 1, 1, 1),),), (1, 8, 8), "int64"),
        (((zeros(1, 1, 1),),), (1, 8, 8), r"shape \(B, t, h, w\), got torch.int64 \(1, 1, 1\)"),
        (((zeros(1, 1, 1, 1),) * 2, (zeros(1, 1, 1, 1),)), (9, 8, 8), r"same number of levels, got \[1, 2\]"),
        (((zeros(2, 1, 1, 1), zeros(3, 1, 2, 2)),), (1, 8, 8), r"same batch size, got \[2, 3\]"),
        (((zeros(2, 1, 1, 1),), (zeros(1, 1, 1, 1),)), (9, 8, 8), r"same batch size, got \[1, 2\]"),
        (((zeros(1, 1, 1, 1),),) * 2, (1, 8, 8), "each of 2 chunks .*got 1 frames of 8x8"),
        (((zeros(1, 1, 1, 1),),), (1, 8, 0), "one pixel a side, got 1 frames of 8x0"),
    ],
)
def test_wrong_ids_are_refused(ids, sizes, message):
    with pytest.raises(ValueError, match=message):
        TokenPyramid(ids, *sizes)


def test_tokens_compare_by_identity(tokens):
    assert tokens == tokens and tokens != tokens.truncate(3) and len({tokens, tokens}) == 1


def test_chunks_concatenate(tokens):
    parts = [TokenPyramid((ids,), n, 32, 30) for ids, n in zip(tokens.ids, (1, 8), strict=True)]
    assert same(concatenate_chunks(parts), tokens)
    parts[1] = TokenPyramid((tokens.ids[1],), 8, 32, 28)
    with pytest.raises(ValueError, match=r"part 1: expected height and width \(32, 30\), got \(32, 28\)"):
        concatenate_chunks(parts)
