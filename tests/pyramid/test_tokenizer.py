"""Invariants 1 to 4 of the design, on a small random tokenizer: they hold for any weights."""

import copy
import dataclasses
import json

import pytest
import torch

from pyramid.quantize import LevelConfig
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig
from pyramid.tokens import TokenPyramid, concatenate_chunks

SMALL = TokenizerConfig(
    height=16,
    width=16,
    channels=(8, 16),
    depths=(1, 1),
    dim=24,
    depth=2,
    latent_dim=16,
    levels=(
        LevelConfig("words", 1, 1, 1),
        LevelConfig("vq", 1, 2, 2, codebook_size=32, code_dim=4),
        LevelConfig("fsq", 1, 4, 4),
        LevelConfig("bits", 2, 4, 4, bits=8),
    ),
)


@pytest.fixture(scope="module", params=["residual", "average"])
def tokenizer(request):
    torch.manual_seed(0)
    tokenizer = PyramidTokenizer(dataclasses.replace(SMALL, combination=request.param))
    for parameter in tokenizer.parameters():  # far from the initial values: nothing is nearly zero by design
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return tokenizer.eval()


def clip(frames, height=16, width=16, batch=2, seed=0):
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def equal(a, b, chunks=None):
    pairs = list(zip(a.ids, b.ids, strict=True))[:chunks]
    return all(torch.equal(x, y) for p, q in pairs for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize("changed", [1, 8, 9, 16, 20, 24])
def test_causal(tokenizer, changed):
    """Changing frame t changes no code and no decoded frame before t's chunk, bit for bit."""
    video = clip(25)
    other = video.clone()
    other[:, :, changed] = -other[:, :, changed]
    first = tokenizer.encode(video), tokenizer.encode(other)
    chunk = (changed + 7) // 8  # frame 0 is chunk 0, frames 1-8 chunk 1, ...
    assert equal(*first, chunks=chunk)
    assert not equal(*first)
    start = 1 + 8 * (chunk - 1)
    decoded = [tokenizer.decode(tokens) for tokens in first]
    assert torch.equal(decoded[0][:, :, :start], decoded[1][:, :, :start])
    assert not torch.equal(decoded[0][:, :, start:], decoded[1][:, :, start:])


@pytest.mark.parametrize("changed", [4, 8, 12])
def test_causal_latents(tokenizer, changed):
    """The networks themselves are causal by latent frame, when training runs a clip at once."""
    video = clip(13)
    other = video.clone()
    other[:, :, changed] = -other[:, :, changed]
    with torch.no_grad():
        a, b = tokenizer.encoder(video)[0], tokenizer.encoder(other)[0]
    frame = (changed + 3) // 4
    assert torch.equal(a[:, :, :frame], b[:, :, :frame]) and not torch.equal(a[:, :, frame], b[:, :, frame])


def test_an_image_is_a_video_of_one_frame(tokenizer):
    video = clip(9)
    image, whole = tokenizer.encode(video[:, :, :1]), tokenizer.encode(video)
    assert all(torch.equal(a, b) for a, b in zip(image.ids[0], whole.ids[0], strict=True))
    assert torch.equal(tokenizer.decode(image), tokenizer.decode(whole)[:, :, :1])


@pytest.mark.parametrize("detail", [1, 2, 3, 4])
def test_a_prefix_is_a_pyramid(tokenizer, detail):
    video = clip(12)
    tokens = tokenizer.encode(video)
    assert equal(tokens.truncate(detail), tokenizer.encode(video, detail))
    decoded = tokenizer.decode(tokens, detail)
    assert decoded.shape == video.shape
    assert torch.equal(decoded, tokenizer.decode(tokens.truncate(detail)))


def test_streaming_is_the_whole(tokenizer):
    video = clip(25)
    whole = tokenizer.encode(video)
    parts = list(tokenizer.encode_stream(video.split([1, 8, 8, 8], dim=2)))
    assert equal(whole, concatenate_chunks(parts))
    frames = torch.cat(list(tokenizer.decode_stream(parts, detail=3)), dim=2)
    assert torch.equal(frames, tokenizer.decode(whole, detail=3))


def test_two_streams_do_not_meet(tokenizer):
    """State is a value that the caller holds: streams may take turns on one model."""
    videos = [clip(17, seed=1), clip(17, seed=2)]
    states, ids = [None, None], [[], []]
    for start, stop in ((0, 1), (1, 9), (9, 17)):
        for stream, video in enumerate(videos):
            codes, states[stream] = tokenizer.encode_chunk(video[:, :, start:stop], states[stream])
            ids[stream].append(codes)
    for stream, video in enumerate(videos):
        expected = tokenizer.encode(video).ids
        assert all(
            torch.equal(a, b) for x, y in zip(ids[stream], expected, strict=True) for a, b in zip(x, y, strict=True)
        )


def test_training_pass_agrees_with_inference(tokenizer):
    video = clip(17)
    with torch.no_grad():
        out = tokenizer(video, torch.tensor([4, 4]))
    tokens = tokenizer.encode(video)
    same = [
        (a == b).float().mean().item()
        for p, q in zip((c.ids for c in out.chunks), tokens.ids, strict=True)
        for a, b in zip(p, q, strict=True)
    ]
    assert min(same) > 0.95  # they agree to rounding; a code on a boundary may fall either way
    if min(same) == 1:
        torch.testing.assert_close(out.video.clamp(-1, 1), tokenizer.decode(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (10, 16, 40), (9, 33, 17)])
def test_any_length_and_size(tokenizer, shape):
    video = clip(*shape)
    tokens = tokenizer.encode(video)
    assert tokenizer.decode(tokens).shape == video.shape
    assert tokens.pyramids == tuple(tokenizer.pyramids(*shape))


@pytest.mark.parametrize(
    "video, message",
    [
        (torch.zeros(3, 9, 16, 16), r"must be \(B, 3, T, H, W\), got \(3, 9, 16, 16\)"),
        (torch.zeros(1, 4, 9, 16, 16), r"got \(1, 4, 9, 16, 16\)"),
        (torch.zeros(1, 3, 1, 16, 16, dtype=torch.uint8), r"float in \[-1, 1\], got torch.uint8"),
        (torch.full((1, 3, 1, 16, 16), 255.0), r"lie in \[-1, 1\], got values from 255"),
        (torch.full((1, 3, 1, 16, 16), float("nan")), "lie in"),
    ],
)
def test_bad_video_is_refused(tokenizer, video, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(video)


def test_bad_detail_is_refused(tokenizer):
    with pytest.raises(ValueError, match="detail must be from 1 to 4, got 5"):
        tokenizer.encode(clip(1), detail=5)
    with pytest.raises(ValueError, match="detail must be from 1 to 2, got 3"):
        tokenizer.decode(tokenizer.encode(clip(1), detail=2), detail=3)


def changed(tokens, level, ids):
    """The tokens with other ids of one level in the last chunk."""
    last = [*tokens.ids[-1]]
    last[level] = ids
    return TokenPyramid((*tokens.ids[:-1], tuple(last)), tokens.num_frames, tokens.height, tokens.width)


@pytest.mark.parametrize(
    "break_tokens, message",
    [
        (lambda t: changed(t, 0, t.ids[1][0] - 4096), "level 1: expected ids from 0 to 4095, got -"),
        (lambda t: changed(t, 1, t.ids[1][1] + 32), "level 2: expected ids from 0 to 31, got"),
        (lambda t: changed(t, 2, t.ids[1][2] + 1000), "level 3: expected ids from 0 to 999, got"),
        (lambda t: changed(t, 3, t.ids[1][3] + 256), "level 4: expected ids from 0 to 255, got"),
        (lambda t: changed(t, 1, t.ids[1][1].repeat(1, 1, 2, 1)), r"level 2: .*\(2, 1, 2, 2\), got .*\(2, 1, 4, 2\)"),
        (lambda t: TokenPyramid(t.ids, 17, 16, 16), "expected 3 chunks for 17 frames, got 2"),
        (lambda t: TokenPyramid(t.ids, 9, 32, 16), r"level 1: .*\(2, 1, 2, 1\), got .*\(2, 1, 1, 1\)"),
        (
            lambda t: TokenPyramid(tuple((*ids, ids[3]) for ids in t.ids), 9, 16, 16),
            "expected one chunk of at most 4 levels, got 1 of 5",
        ),
    ],
)
def test_foreign_tokens_are_refused(tokenizer, break_tokens, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(break_tokens(tokenizer.encode(clip(9))))


def test_foreign_chunks_are_refused(tokenizer):
    (ids,) = tokenizer.encode(clip(1)).ids
    for broken, message in (
        ((), "1 to 4 levels, got 0"),
        ((*ids, ids[3]), "1 to 4 levels, got 5"),
        ((ids[0].int(),), "level 1: expected ids int64"),
        ((ids[0], ids[1][:1]), r"level 2: .*\(2, 1, 2, 2\), got .*\(1, 1, 2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.decode_chunk(broken, None, height=16, width=16)
    with pytest.raises(ValueError, match="height and width must be at least 1, got 0 and 16"):
        tokenizer.decode_chunk(ids, None, height=0, width=16)


@pytest.mark.parametrize(
    "chunks, message",
    [
        ([clip(1), clip(4), clip(4), clip(8)], "chunk 1 is not the last: expected 8 frames, got 4"),
        ([clip(1), clip(8, 16, 20)], r"chunk 1: .*\(2, 16, 16\), got \(2, 16, 20\)"),
        ([clip(1), clip(8)[:, :1]], r"must be \(B, 3, T, H, W\), got \(2, 1, 8, 16, 16\)"),
    ],
)
def test_chunks_that_do_not_follow_are_refused(tokenizer, chunks, message):
    with pytest.raises(ValueError, match=message):
        list(tokenizer.encode_stream(chunks))


def test_parts_that_do_not_follow_are_refused(tokenizer):
    tokens = tokenizer.encode(clip(9))
    with pytest.raises(ValueError, match="decode_stream: chunk 0: expected at most 1 frames, got 9"):
        list(tokenizer.decode_stream([tokens]))
    first = TokenPyramid(tokens.ids[:1], 1, 16, 16)
    with pytest.raises(ValueError, match=r"chunk 1: .*\(2, 16, 16\), got \(1, 16, 16\)"):
        list(tokenizer.decode_stream([first, TokenPyramid(tokens.ids[1:], 8, 16, 16)[:1]]))


@pytest.mark.parametrize("size", [(0, 16), (16, 0), (0, 0)])
def test_no_pixels_have_no_pyramid(tokenizer, size):
    with pytest.raises(ValueError, match=f"height and width must be at least 1, got {size[0]} and {size[1]}"):
        tokenizer.pyramids(9, *size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_video_of_any_float_dtype_is_cast(tokenizer, dtype):
    video = clip(9).to(dtype)
    tokens = tokenizer.encode(video)
    assert equal(tokens, tokenizer.encode(video.float()))
    assert equal(tokens, concatenate_chunks(list(tokenizer.encode_stream(video.split([1, 8], dim=2)))))
    assert tokenizer(video, torch.tensor([4, 4])).video.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_dtype(tokenizer, dtype):
    other = copy.deepcopy(tokenizer).to(dtype)
    tokens = tokenizer.encode(clip(9))
    same = (other.encode(clip(9)).flatten() == tokens.flatten()).float().mean()
    assert same > 0.8  # codes near a boundary fall either way
    decoded = other.decode(tokens)
    assert decoded.dtype == other.dtype == dtype
    torch.testing.assert_close(decoded.float(), tokenizer.decode(tokens), atol=0.1, rtol=0)


def test_more_bits_than_the_exact_entropy_reaches():
    config = dataclasses.replace(SMALL, levels=(LevelConfig("bits", 2, 4, 4, bits=24),))
    tokenizer = PyramidTokenizer(config)
    out = tokenizer(clip(9), torch.tensor([1, 1]))
    loss = sum(chunk.losses[0] for chunk in out.chunks)
    (grad,) = torch.autograd.grad(loss, tokenizer.levels.levels[0].project_in.weight)
    assert loss.isfinite() and grad.isfinite().all() and grad.abs().sum() > 0
    tokens = tokenizer.encode(clip(9))
    assert tokens.ids[1][0].max() >= 1 << 20 and tokenizer.decode(tokens).shape == (2, 3, 9, 16, 16)


def test_words_are_read_from_the_word_levels(tokenizer):
    words = tokenizer.words(tokenizer.encode(clip(9)))
    assert len(words) == 2 and len(words[0]) == 2 and len(words[0][0]) == 1
    assert words[0][0][0][0] in tokenizer.table.words


def test_folder_round_trip(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = PyramidTokenizer.from_pretrained(tmp_path)
    assert again.config == tokenizer.config
    assert equal(tokenizer.encode(clip(9)), again.encode(clip(9)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "words.safetensors"]


def test_models_from_before_a_key_load(tokenizer, tmp_path):
    """Keys that came later have defaults that are what models without them have."""
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("kernel", "expand", "gelu", "adaptive_norm"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = PyramidTokenizer.from_pretrained(tmp_path)
    assert again.config == tokenizer.config
    assert equal(tokenizer.encode(clip(9)), again.encode(clip(9)))


def test_folders_that_do_not_fit_are_refused(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder with config.json"):
        PyramidTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"word_table_hash": "0" * 16}))
    with pytest.raises(ValueError, match="words.safetensors has hash"):
        PyramidTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"dim": 32}))
    with pytest.raises(ValueError, match=r"weights don't fit the config: \d+ have another shape"):
        PyramidTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"format_version": 99}))
    with pytest.raises(ValueError, match="expected a pyramid.tokenizer, version 1"):
        PyramidTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda config: config.pop("levels"), "expected every key of TokenizerConfig, found no levels"),
        (lambda config: config.pop("fps"), "expected every key of TokenizerConfig, found no fps"),
        (
            lambda config: config["levels"][2].pop("fsq_levels"),
            "expected every key of LevelConfig, found no fsq_levels",
        ),
        (lambda config: config.update(depht=1), "depht"),
        (lambda config: config["levels"][0].update(tt=1), "tt"),
        (lambda config: config.update(time_stride=0), "time_stride must be at least 1, got 0"),
        (lambda config: config.update(levels=3), "levels"),
    ],
)
def test_broken_configs_are_refused(tokenizer, tmp_path, change, message):
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as error:
        PyramidTokenizer.from_pretrained(tmp_path)
    assert str(error.value).startswith(f"PyramidTokenizer: {path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "words.safetensors"])
def test_broken_files_are_named(tokenizer, tmp_path, name):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / name).write_text("[1, 2] is nothing of ours, but long enough for a header")
    with pytest.raises(ValueError, match=f"{tmp_path}.*{name}"):
        PyramidTokenizer.from_pretrained(tmp_path)


def test_a_folder_is_replaced_file_by_file(tokenizer, tmp_path, monkeypatch):
    """A save that fails leaves the file it was at as it was, and no other name; the config, last, is not reached."""
    tokenizer.save_pretrained(tmp_path)
    files = [tmp_path / name for name in ("config.json", "model.safetensors", "words.safetensors")]
    before = [path.read_bytes() for path in files[:2]]

    def fail(weights, path, **kwargs):
        path.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr("pyramid.tokenizer.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        tokenizer.save_pretrained(tmp_path, half=True)
    assert sorted(tmp_path.iterdir()) == files and [path.read_bytes() for path in files[:2]] == before


@pytest.mark.parametrize(
    "values, message",
    [
        *(
            ({name: 0}, f"TokenizerConfig: {name} must be at least 1, got 0")
            for name in ("height", "width", "num_frames", "patch", "time_stride", "chunk_frames", "dim", "latent_dim")
        ),
        ({"expand": 0}, "expand must be at least 1, got 0"),
        ({"kernel": 4}, "kernel must be an odd number of at least 1, got 4"),
        ({"gelu": "fast"}, "gelu must be one of tanh, erf, got 'fast'"),
        ({"depth": -1}, "depth must be at least 0, got -1"),
        ({"depths": (1, -1, 1)}, r"depths must be at least 0, got \(1, -1, 1\)"),
        ({"channels": (8, 0, 8)}, r"channels must be at least 1, got \(8, 0, 8\)"),
        ({"channels": (8,), "depths": (1, 1)}, "channels and depths"),
        ({"channels": (), "depths": ()}, "channels and depths"),
        ({"fps": 0.0}, "fps must be above 0 and finite, got 0"),
        ({"fps": float("nan")}, "fps must be above 0 and finite, got nan"),
        ({"levels": ()}, "levels: expected at least one, got none"),
        ({"chunk_frames": 6}, "multiple of time_stride 4, got 6"),
    ],
)
def test_configs_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**values)
