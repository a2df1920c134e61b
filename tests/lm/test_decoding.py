"""The three decoders of one model: how many passes they take, that they agree where they must, seeds, guidance."""

import pytest
import torch

from lm import layout
from lm.backbone import LMConfig, make_backbone
from lm.conditions import make_condition
from lm.decoding import Decoding, TextWarning, num_passes
from lm.model import PyramidLM
from lm.vocabulary import train_text_tokenizer
from pyramid.quantize import LevelConfig
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig

VIDEO = TokenizerConfig(
    height=16,
    width=16,
    num_frames=9,
    channels=(8, 16),
    depths=(1, 1),
    dim=24,
    depth=1,
    latent_dim=16,
    levels=(
        LevelConfig("bits", 1, 1, 1, bits=8),
        LevelConfig("vq", 1, 2, 2, codebook_size=32),
        LevelConfig("bits", 2, 4, 4),
    ),
)


@pytest.fixture(scope="module")
def lm():
    torch.manual_seed(0)
    config = LMConfig(dim=32, num_layers=2, num_heads=2, mlp=48, text_size=300, memory=2)
    text = train_text_tokenizer(["a red star moves left"], 300)
    lm = PyramidLM(config, PyramidTokenizer(VIDEO), text, make_backbone(config, len(text)))
    for parameter in lm.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return lm.eval()


WAYS = [
    {"decoder": "next-level"},
    {"decoder": "masked", "passes": 3},
    {"decoder": "masked", "passes": (1, 2, 4), "order": "halton"},
    {"decoder": "masked", "passes": 4, "order": "confidence"},
    {"decoder": "raster"},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_a_decoder_takes_its_passes_and_a_seed_reproduces(lm, way, monkeypatch):
    calls, run = [], lm.runner()
    monkeypatch.setattr(lm, "runner", lambda: lambda *args: calls.append(args[0].shape) or run(*args))
    tokens = lm.generate(["a red star"], seed=4, **way)
    blocks = layout.blocks_of(tokens.pyramids, 3, lm.memory)
    assert len(calls) == num_passes(Decoding(**way), blocks)
    assert torch.equal(tokens.flatten(), lm.generate(["a red star"], seed=4, **way).flatten())
    assert not torch.equal(tokens.flatten(), lm.generate(["a red star"], seed=5, **way).flatten())
    for levels in tokens.ids:
        for ids, level in zip(levels, lm.tokenizer.levels.levels, strict=True):
            assert int(ids.min()) >= 0 and int(ids.max()) < level.quantizer.codebook_size


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_a_clip_does_not_depend_on_its_neighbours(lm, way):
    """Bit for bit would ask the matrix products to round alike for any batch; ids differ where two draws are a
    rounding apart, if anywhere."""
    together = lm.generate(["a red star", "", "a star"], seed=4, **way)
    alone = lm.generate([""], seed=5, **way)
    assert (together[1:2].flatten() == alone.flatten()).float().mean() > 0.95


def test_many_passes_are_raster_in_another_order(lm):
    """At temperature 0, a block of one token is the same by any decoder."""
    one = [lm.generate(["a red star"], 1, temperature=0, **way).flatten() for way in WAYS]
    assert all(torch.equal(one[0], other) for other in one)


@pytest.mark.parametrize("refresh", [1, 5, 16])
def test_a_scan_is_one_sequence(lm, refresh, monkeypatch):
    """Hidden states of a block's tokens by passes over a cache, and by one pass without: of the block hidden, or known
    up to where it was looked at last; of its tokens as they come to be known; of each as it is drawn."""
    passes, run = [], lm.runner()
    monkeypatch.setattr(lm, "runner", lambda: lambda *args: passes.append(run(*args)) or passes[-1])
    settings = {"decoder": "raster", "refresh": refresh, "guidance": 1}
    codes = lm.generate(["a red star"], num_frames=1, seed=1, **settings)
    blocks = layout.blocks_of(codes.pyramids, 3, lm.memory)
    ids = [part.flatten(1) for part in codes.ids[0]]
    context = lm.context(1, 16, 16)
    seen = [(context.at(b), context.add(b, i))[0] for b, i in zip(blocks, ids, strict=True)]
    head, pads = lm.prefix("generate", 3, [lm.text_ids("a red star")])
    known = [lm.embed_block(b, i, s) for b, i, s in zip(blocks, ids, seen, strict=True)]
    start = head.shape[1] + blocks[-1].start
    before = torch.cat([lm.embed_ids(head), *known[:-1]], dim=1)
    sees = [layout.prefix_intervals(pads, head.shape[1]), layout.clean_intervals(blocks[:-1], pads, head.shape[1])]
    count = blocks[-1].count
    hidden = lm.embed_block(blocks[-1], ids[-1], seen[-1], torch.ones(1, count, dtype=torch.bool))
    for turn in range(count):
        fresh = turn - turn % refresh
        x = [before, known[-1][:, :fresh], hidden[:, fresh:]]  # the last look at all
        places = [*range(start + count)]
        rows = [[0, start + count, start + count, start + count]] * count
        if turn > fresh:
            x += [known[-1][:, fresh:turn], hidden[:, turn : turn + 1]]
            places += range(start + fresh, start + turn + 1)
            rows = rows + [
                [0, start + fresh, start + t + 1, start + count + t + 1 - fresh] for t in range(fresh, turn + 1)
            ]
        intervals = torch.cat([*sees, torch.tensor([rows])], dim=1)
        out = lm.run(torch.cat(x, dim=1), intervals, torch.tensor([places]))
        at = -1 if turn > fresh else start + turn
        assert torch.allclose(out[:, at], passes[turn - count][:, 0], atol=1e-5), turn


def test_a_model_is_trained_after_it_has_written(lm):
    layout.position_features.cache_clear()
    tokens = lm.generate(["a red star"], num_frames=1)
    lm.generation_loss(tokens, [lm.text_ids("a red star")], 3)[2].backward()
    assert lm.place.weight.grad.abs().sum() > 0
    lm.zero_grad()


def test_next_level_is_masked_of_one_pass(lm):
    a = lm.generate(["a red star"], temperature=0, decoder="next-level")
    b = lm.generate(["a red star"], temperature=0, decoder="masked", passes=1)
    assert torch.equal(a.flatten(), b.flatten())


def test_guidance_zero_ignores_the_prompt_and_a_negative_one_is_left(lm):
    same = {"seed": 3, "temperature": 0}
    nothing = lm.generate([""], guidance=1, **same).flatten()
    assert torch.equal(lm.generate(["a red star"], guidance=0, **same).flatten(), nothing)
    plain, pressed = (lm.generate(["a red star"], guidance=g, **same).flatten() for g in (1, 6))
    assert not torch.equal(plain, pressed)
    away = lm.generate(["a red star"], guidance=6, negative="a star", **same).flatten()
    assert not torch.equal(away, pressed)
    with pytest.warns(TextWarning, match="the negative prompt is not read: guidance is 1") as caught:
        lm.generate(["a red star"], guidance=1, negative="a star")
    assert caught[0].filename == __file__
    # A prompt against itself is the prompt.
    assert torch.equal(
        lm.generate(["a star"], guidance=6, negative="a star", **same).flatten(),
        lm.generate(["a star"], guidance=1, **same).flatten(),
    )


def test_both_branches_go_in_one_batch(lm, monkeypatch):
    rows, run = [], lm.runner()
    monkeypatch.setattr(lm, "runner", lambda: lambda *args: rows.append(len(args[0])) or run(*args))
    lm.generate(["a red star", "a star"], guidance=3)
    assert set(rows) == {4}
    rows.clear()
    lm.generate(["", ""], guidance=3)
    assert set(rows) == {2}  # nothing to be guided by
    known = torch.ones(9, 16, 16, dtype=torch.bool)
    known[:, 4:8] = False
    condition = make_condition(lm.tokenizer, "inpaint", torch.zeros(2, 3, 9, 16, 16), known)
    rows.clear()
    lm.generate(["a red star", "a star"], condition=condition, guidance=3, guidance_given=2)
    assert set(rows) == {6}


def test_guidance_by_what_is_given(lm):
    known = torch.ones(9, 16, 16, dtype=torch.bool)
    known[:, 4:12, 4:12] = False
    video = torch.rand(1, 3, 9, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    condition = make_condition(lm.tokenizer, "inpaint", video, known)
    plain, pressed, none = (
        lm.generate([""], condition=condition, temperature=0, guidance_given=g).flatten() for g in (1, 5, 0)
    )
    assert not torch.equal(plain, pressed) and not torch.equal(plain, none)
    hidden = type(condition)("inpaint", None, None, condition.hint, tuple(part * 0 for part in condition.share))
    without = lm.generate([""], condition=hidden, temperature=0).flatten()
    assert torch.equal(none, without)  # 0 ignores it


def test_blocks_are_told_of_in_order(lm):
    told = []
    tokens = lm.generate(["a red star"], 2, on_block=lambda chunk, level, ids: told.append((chunk, level, len(ids))))
    assert told == [(0, 0, 1), (0, 1, 2), (1, 0, 1), (1, 1, 2)] and tokens.num_levels == 2


def test_a_negative_for_each_prompt_or_one_for_all(lm):
    with pytest.raises(ValueError, match="negative: expected a text or one for each of 2, got 3"):
        lm.generate(["", ""], negative=["a", "b", "c"])
    one = lm.generate(["a star", "a red star"], negative="red", guidance=2).flatten()
    assert torch.equal(one, lm.generate(["a star", "a red star"], negative=["red", "red"], guidance=2).flatten())


def test_a_model_has_decoding_of_its_own(lm, tmp_path):
    import dataclasses

    own = {"": Decoding("next-level"), "inpaint": Decoding("masked", passes=7)}
    config = dataclasses.replace(lm.config, decoding=own)
    other = PyramidLM(config, lm.tokenizer, lm.text, lm.backbone)
    assert other.decoding("generate") == own[""] and other.decoding("inpaint").passes == (7,)
    other.save_pretrained(tmp_path / "lm")
    again = PyramidLM.from_pretrained(tmp_path / "lm", tokenizer=lm.tokenizer)
    assert again.config == config
    with pytest.raises(ValueError, match="decoding: expected some of the model's tasks, got dance"):
        dataclasses.replace(lm.config, decoding={"dance": Decoding()})
