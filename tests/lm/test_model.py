"""The language model on a small random tokenizer: cached = uncached, nothing leaks, seeds reproduce."""

import copy
import dataclasses
import json
import warnings

import pytest
import torch
from transformers import DynamicCache

from lm import layout
from lm.backbone import LMConfig, make_backbone
from lm.conditions import make_condition
from lm.context import Seen
from lm.decoding import TextWarning
from lm.losses import hidden_places
from lm.model import PyramidLM
from lm.vocabulary import train_text_tokenizer
from pyramid.quantize import LevelConfig
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig

CAPTIONS = ["a small red star moves left", "a large blue ring bounces", "a green square rests"]
VIDEO = TokenizerConfig(
    height=16,
    width=16,
    channels=(8, 16),
    depths=(1, 1),
    dim=24,
    depth=1,
    latent_dim=16,
    levels=(
        LevelConfig("words", 1, 1, 1),
        LevelConfig("words", 1, 2, 2),
        LevelConfig("fsq", 1, 2, 2, fsq_levels=(8, 8, 8, 5, 5, 5)),
        LevelConfig("bits", 2, 4, 4, bits=18),
    ),
)
CONFIG = LMConfig(dim=32, num_layers=2, num_heads=2, mlp=48, text_size=300, max_text=12)


@pytest.fixture(scope="module", params=[None, 2], ids=["remembers all", "remembers two levels"])
def lm(request):
    """A model that looks back at all tokens and shows one latent frame, and one that does not."""
    torch.manual_seed(0)
    tokenizer = PyramidTokenizer(VIDEO)
    text = train_text_tokenizer(CAPTIONS, CONFIG.text_size)
    config = dataclasses.replace(CONFIG, memory=request.param, history=request.param or 1)
    lm = PyramidLM(config, tokenizer, text, make_backbone(config, len(text)))
    for parameter in lm.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return lm.eval()


@pytest.fixture(scope="module")
def tokens(lm):
    return lm.tokenizer.encode(torch.rand(3, 3, 17, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1)


def sentences(lm):
    return [lm.text_ids(caption) for caption in CAPTIONS]


def block_logits(lm, tokens, blocks, x_prefix, cached):
    """Hidden states of the fully hidden copy of each block, given the remembered blocks before it, and what each block
    sees."""
    ids, pads = lm.prefix("generate", lm.num_levels, x_prefix)
    start = ids.shape[1]
    context = lm.context(tokens.batch_size, tokens.height, tokens.width)
    cache = DynamicCache() if cached else None
    kept, out, saw = [(lm.embed_ids(ids), layout.prefix_intervals(pads, start), torch.arange(start))], [], []
    for block in blocks:
        codes = tokens.ids[block.chunk][block.level].flatten(1)
        seen = context.at(block)
        saw.append(seen)
        hidden = torch.ones_like(codes, dtype=torch.bool)
        own, places = layout.clean_intervals([block], pads, start), layout.places_of([block], start)
        asked = [*kept, (lm.embed_block(block, codes, seen, hidden), own, places)]
        positions = (torch.cat([part[2] for part in asked])[None] - pads[:, None]).clamp(min=0)
        x, intervals = (torch.cat([part[i] for part in asked], dim=1) for i in (0, 1))
        out.append(lm.run(x, intervals, positions, cache)[:, -block.count :])
        if cached:
            cache.crop(-block.count)
            kept = [(x[:, :0], intervals[:, :0], places[:0])]
        if block.remembered:
            kept.append((lm.embed_block(block, codes, seen), own, places))
        context.add(block, codes)
    return torch.cat(out, dim=1), saw


@torch.no_grad()
def test_cached_is_uncached(lm, tokens):
    blocks = layout.blocks_of(tokens.pyramids, lm.num_levels, lm.memory)
    arguments = (lm, tokens, blocks, sentences(lm))
    (cached, _), (uncached, _) = block_logits(*arguments, True), block_logits(*arguments, False)
    torch.testing.assert_close(cached, uncached, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_training_sees_what_generation_sees(lm, tokens):
    """One training pass over all blocks gives the losses of the block-by-block pass."""
    losses = lm.generation_loss(tokens, sentences(lm), lm.num_levels, whole=1.0)
    blocks = layout.blocks_of(tokens.pyramids, lm.num_levels, lm.memory)
    hidden, saw = block_logits(lm, tokens, blocks, sentences(lm), cached=True)
    expected: dict = {}
    for block, seen, out in zip(blocks, saw, hidden.split([b.count for b in blocks], dim=1), strict=True):
        codes = tokens.ids[block.chunk][block.level].flatten(1)
        nll = lm.heads[block.level].nll(out, codes, lm.points(block, seen)).mean()
        expected.setdefault(block.level, []).append(nll)
    for level, loss in losses.items():
        torch.testing.assert_close(loss, torch.stack(expected[level]).mean(), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_and_neighbours_do_not_matter(lm, tokens):
    blocks = layout.blocks_of(tokens.pyramids, lm.num_levels, lm.memory)
    together, _ = block_logits(lm, tokens, blocks, sentences(lm), cached=True)
    alone, _ = block_logits(lm, tokens[2:], blocks, sentences(lm)[2:], cached=True)
    torch.testing.assert_close(together[2:], alone, atol=2e-5, rtol=1e-4)


def test_hidden_codes_do_not_leak(lm, tokens):
    """The hidden copy of a block does not depend on the block's own codes."""
    block = layout.blocks_of(tokens.pyramids, lm.num_levels)[3]
    codes = tokens.ids[0][3].flatten(1)
    seen = Seen(torch.zeros(3, block.count, lm.seen.in_features))
    hidden = torch.ones_like(codes, dtype=torch.bool)
    assert torch.equal(lm.embed_block(block, codes, seen, hidden), lm.embed_block(block, codes * 0, seen, hidden))
    assert not torch.equal(lm.embed_block(block, codes, seen), lm.embed_block(block, codes * 0, seen))


@pytest.mark.parametrize("detail", [1, 2, 3, 4])
def test_generate_at_every_detail(lm, detail):
    tokens = lm.generate(CAPTIONS, detail, seed=5, passes=3)
    assert tokens.num_levels == detail and tokens.batch_size == 3
    for levels in tokens.ids:
        for ids, part in zip(levels, lm.tokenizer.levels.levels, strict=False):
            assert int(ids.min()) >= 0 and int(ids.max()) < part.quantizer.codebook_size
    assert lm.tokenizer.decode(tokens).shape == (3, 3, 9, 16, 16)


def test_a_coarser_generation_is_the_start_of_a_finer_one_in_shape(lm):
    coarse, fine = lm.generate(CAPTIONS, 2, num_frames=20, size=(24, 16)), lm.tokenizer.pyramids(20, 24, 16)
    assert coarse.pyramids == tuple(p.prefix(2) for p in fine)


def test_a_seed_reproduces_a_clip_in_any_batch(lm):
    together = lm.generate(CAPTIONS, seed=7)
    again = lm.generate(CAPTIONS, seed=7)
    alone = lm.generate(CAPTIONS[1:2], seed=8)  # clip i is drawn with seed + i
    other = lm.generate(CAPTIONS[1:2], seed=9)
    assert torch.equal(together.flatten(), again.flatten())
    assert (together[1:2].flatten() == alone.flatten()).float().mean() > 0.95  # other batch, other rounding
    assert not torch.equal(alone.flatten(), other.flatten())


def test_captions_are_text(lm, tokens):
    captions = lm.caption(tokens)
    assert len(captions) == 3 and all(isinstance(caption, str) for caption in captions)
    video = torch.zeros(1, 3, 9, 16, 16)
    assert lm.caption(video) == lm.caption(lm.tokenizer.encode(video), detail=CONFIG.caption_detail)


def test_a_prompt_is_cut_with_a_warning(lm):
    long = " ".join(CAPTIONS)
    count, most = len(lm.text_ids(long)), CONFIG.max_text
    assert count > most
    with pytest.warns(TextWarning, match=f"prompt 2 has {count} tokens, the first {most} are read") as caught:
        cut = lm.generate([CAPTIONS[0], long], 1, seed=3)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = lm.generate([CAPTIONS[0], lm.text.decode(lm.text_ids(long)[:most])], 1, seed=3)
    assert torch.equal(cut.flatten(), whole.flatten())


def test_a_cut_caption_has_no_end(lm, tokens, monkeypatch):
    """Else the model would learn to stop in the middle of a sentence."""
    targets, most = [], CONFIG.max_text
    monkeypatch.setattr("lm.losses.linear_cross_entropy", lambda hidden, weight, target: targets.append(target))
    lm.reading_loss(tokens[:2], [list(range(5, 25)), [7, 8]], 2)
    assert targets[0].tolist() == [*range(5, 5 + most), 7, 8, lm.text.eos_token_id, *[-100] * (most - 3)]


def test_the_tokenizer_goes_where_the_model_goes(lm):
    moved = copy.deepcopy(lm)
    for embedding, level in zip(moved.codes, moved.tokenizer.levels.levels, strict=True):
        assert embedding.ids_to_codes.__self__ is level.quantizer
    moved.half()
    assert moved.tokenizer.encoder.head[1].weight.dtype == torch.float32
    moved.to("meta")
    tensors = [*moved.tokenizer.parameters(), *moved.tokenizer.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"} and lm.tokenizer.device.type == "cpu"


def test_losses_have_gradients_everywhere(lm, tokens):
    lm.zero_grad()
    losses = lm.generation_loss(tokens, [*sentences(lm)[:2], []], 4)
    video, known = torch.zeros(3, 3, 17, 16, 16), torch.ones(17, 16, 16, dtype=torch.bool)
    known[:, :8] = False
    hinted = make_condition(lm.tokenizer, "outpaint", video, known)
    more = lm.generation_loss(tokens, sentences(lm), 4, condition=hinted)
    (sum(losses.values()) + sum(more.values()) + lm.reading_loss(tokens.truncate(2), sentences(lm), 2)).backward()
    missing = [name for name, p in lm.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    lm.zero_grad()


def test_folder_round_trip(lm, tmp_path):
    lm.save_pretrained(tmp_path / "lm")
    lm.tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = PyramidLM.from_pretrained(tmp_path / "lm")
    assert torch.equal(again.generate(CAPTIONS, seed=1).flatten(), lm.generate(CAPTIONS, seed=1).flatten())
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    assert again.caption(video) == lm.caption(video)


def test_a_save_that_fails_leaves_the_old_model(lm, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    lm.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("lm.folder.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        copy.deepcopy(lm).half().save_pretrained(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "backbone"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dim": ...}, r"config.json: expected the keys of an LMConfig, got missing=\['dim'\], unknown=\[\]"),
        ({"tokenizer": ..., "width": 3}, r"got missing=\['tokenizer'\], unknown=\['width'\]"),
        ({"format": "pyramid.tokenizer"}, r"expected a pyramid.lm, version 1, got \('pyramid.tokenizer', 1\)"),
    ],
)
def test_a_config_of_other_keys_is_refused(lm, tmp_path, change, message):
    lm.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text()) | change
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    with pytest.raises(ValueError, match=message):
        PyramidLM.from_pretrained(tmp_path, tokenizer=lm.tokenizer)


def test_any_causal_lm_by_name(lm, tokens, tmp_path):
    """A pretrained backbone of another architecture, from a folder on disk."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=300, num_key_value_heads=2, tie_word_embeddings=False, **shape)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    lm.text.save_pretrained(tmp_path)
    config = LMConfig(backbone=str(tmp_path), max_text=8)
    other = PyramidLM(config, lm.tokenizer, lm.text, make_backbone(config, 0)).eval()
    assert len(other.caption(tokens)) == 3
    assert other.generate(CAPTIONS[:1]).num_levels == 4
    assert other.generation_loss(tokens, sentences(lm), 4)[3].isfinite()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": ["x"], "detail": 5}, "detail must be from 1 to 4, got 5"),
        ({"prompts": ["x"], "passes": 0}, "passes must be at least 1"),
        ({"prompts": ["x"], "temperature": -1}, "temperature must be finite and 0 or more, got"),
        ({"prompts": ["x"], "temperature": float("nan")}, "temperature must be finite and 0 or more, got"),
        ({"prompts": ["x"], "guidance": float("inf")}, "guidance must be finite and 0 or more, got inf"),
        ({"prompts": ["x"], "top_p": 0}, r"top_p must lie in \(0, 1\], got 0"),
        ({"prompts": ["x"], "top_p": float("nan")}, r"top_p must lie in \(0, 1\], got nan"),
        ({"prompts": ["x"], "num_frames": 0}, "must be at least 1, got 0 and 16x16"),
        ({"prompts": ["x"], "size": (0, 16)}, "must be at least 1, got 9 and 0x16"),
    ],
)
def test_errors(lm, arguments, message):
    with pytest.raises(ValueError, match=message):
        lm.generate(**arguments)


def test_one_string_is_no_list_of_prompts(lm):
    with pytest.raises(TypeError, match="expected a list of prompts, one a clip, got the string 'a red star'"):
        lm.generate("a red star")


def test_no_clip_has_no_caption(lm, tokens):
    with pytest.raises(ValueError, match="expected at least one clip, got none"):
        lm.caption(tokens[:0])


@pytest.mark.parametrize("name", ["max_text", "caption_detail"])
def test_a_config_reads_something(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        LMConfig(**{name: 0})


def test_a_sequence_is_ids_of_one_space(lm, tokens):
    v, part = lm.vocabulary, tokens.truncate(3)
    for task in ("generate", "caption"):
        ids = lm.sequence_ids(task, part, CAPTIONS)
        codes = [v.to_ids(k, ids.flatten(1)) for chunk in part.ids for k, ids in enumerate(chunk)]
        flat = torch.cat(codes, dim=1)
        start = ids.shape[1] - flat.shape[1] if task == "generate" else 2
        assert torch.equal(ids[:, start : start + flat.shape[1]], flat)
        assert ids.min() >= 0 and ids.max() < v.size
        for row, text in zip(ids.tolist(), sentences(lm), strict=True):
            said = [*text, lm.text.eos_token_id][: CONFIG.max_text]
            head, rest = [v.task(task), v.detail(3)], row[start + flat.shape[1] :]
            if task == "generate":
                assert [i for i in row[:start] if i != v.pad] == head + text[: CONFIG.max_text]
            else:
                assert row[:2] == head and [i for i in rest if i != v.pad] == said


def test_forced_blocks_follow_on_the_truth(lm, tokens):
    """Where the truth is what the model draws, forcing changes nothing; elsewhere what follows is another."""
    settings = {"temperature": 0, "guidance": 1}
    free = lm.generate(CAPTIONS, **settings)
    assert torch.equal(lm.generate(CAPTIONS, forced=free, **settings).flatten(), free.flatten())
    drawn = lm.generate(CAPTIONS, forced=tokens, num_frames=17, **settings)
    assert torch.equal(drawn.ids[0][0], free.ids[0][0])  # before the first block nothing is forced
    assert not torch.equal(drawn.flatten(), lm.generate(CAPTIONS, num_frames=17, **settings).flatten())


@torch.no_grad()
def test_weights_in_bfloat16(lm, tokens):
    """Half the memory; the tokenizer stays in float32, and what the model finds likely stays about the same."""
    half = copy.deepcopy(lm).to(torch.bfloat16)
    assert half.hidden_token.dtype == torch.bfloat16 and half.tokenizer.dtype == torch.float32
    assert half.generate(CAPTIONS, seed=1).num_levels == 4 and len(half.caption(tokens)) == 3
    wanted, found = (m.generation_loss(tokens, sentences(lm), 4, whole=1.0) for m in (lm, half))
    for level, loss in wanted.items():
        assert abs(loss - found[level]) < 0.03 * loss


def test_blocks_are_hidden_whole_as_often_as_asked():
    block = layout.Block(0, 0, 0, (2, 4, 4))
    for whole in (0.0, 0.3, 1.0):
        hidden = hidden_places(block, 4000, torch.Generator().manual_seed(0), 0.0, whole)
        assert hidden.any(dim=1).all()
        assert abs(hidden.all(dim=1).float().mean() - whole) < 0.03 + (1 - whole) * 0.2  # few of the others are, too
