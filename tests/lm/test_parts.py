"""Vocabulary, layout, heads and sampling on their own."""

import math

import pytest
import torch

from lm import layout
from lm.decoding import Decoding, halton_order, num_passes, turns
from lm.heads import GroupHead, Point, WordHead
from lm.sampling import Sampler, guidance_weights, keep_nucleus
from lm.vocabulary import Vocabulary, train_text_tokenizer
from pyramid.levels import Level, Pyramid

PYRAMIDS = [Pyramid((Level(1, 1, 1), Level(1, 2, 2))), Pyramid((Level(1, 1, 1), Level(2, 2, 2)))]


def test_special_tokens_follow_the_text_without_overlap():
    vocabulary = Vocabulary(100, (16, 16, 1 << 20, 8), ("generate", "caption"))
    special = [vocabulary.pad, *map(vocabulary.task, ("generate", "caption")), *map(vocabulary.detail, range(1, 5))]
    assert sorted(special) == list(range(100, 100 + vocabulary.num_special))
    assert vocabulary.offset(0) == 100 + vocabulary.num_special
    with pytest.raises(ValueError, match="this model knows generate, caption; got .dance."):
        vocabulary.task("dance")
    with pytest.raises(ValueError, match="expected 1 to 4, got 5"):
        vocabulary.detail(5)


def test_every_level_has_a_range_of_its_own():
    vocabulary = Vocabulary(100, (16, 16, 1 << 20, 8), ("generate", "caption"))
    codes = [torch.tensor([0, size - 1]) for size in vocabulary.codebook_sizes]
    ids = [vocabulary.to_ids(level, code) for level, code in enumerate(codes)]
    flat = torch.cat(ids).tolist()
    assert flat == sorted(set(flat)) and flat[-1] == vocabulary.size - 1
    assert all(torch.equal(vocabulary.to_codes(level, i), codes[level]) for level, i in enumerate(ids))
    with pytest.raises(ValueError, match=f"level 2 has ids from {ids[1][0]} to {ids[1][1]}, got {ids[0][0]}"):
        vocabulary.to_codes(1, ids[0])


@pytest.mark.parametrize("sentence", ["a small red star", "Ünïcode, 日本 & emoji 🎈", "", "  two  spaces "])
def test_text_round_trips(sentence):
    text = train_text_tokenizer(["a small red star moves left"] * 3, 300)
    assert text.decode(text(sentence, add_special_tokens=False)["input_ids"]) == sentence
    assert text.eos_token_id == 0


@pytest.mark.parametrize("size", [256, 257])
def test_a_text_tokenizer_has_an_id_for_every_byte(size):
    if size < 257:
        with pytest.raises(ValueError, match="size must be at least 257, got 256"):
            train_text_tokenizer(["a red star"], size)
    else:
        assert len(train_text_tokenizer(["a red star"], size)) == size


def test_blocks_and_who_sees_whom():
    blocks = layout.blocks_of(PYRAMIDS, 2)
    assert [(b.chunk, b.level, b.start, b.stop) for b in blocks] == [
        (0, 0, 0, 1),
        (0, 1, 1, 5),
        (1, 0, 5, 6),
        (1, 1, 6, 14),
    ]
    pads = torch.tensor([0, 2])
    prefix = layout.prefix_intervals(pads, 5)
    assert prefix[0, :, 1].tolist() == [1, 2, 3, 4, 5]
    assert (prefix[1, :2, 0] == prefix[1, :2, 1]).all()  # pads see nothing
    clean = layout.clean_intervals(blocks, pads, 5)
    assert clean[1, 1].tolist()[:2] == [2, 10]  # from behind the pads to the end of its own block
    masked = layout.masked_intervals(blocks, pads, 5, 19)
    assert masked[0, 1].tolist() == [0, 6, 20, 24]  # all before its clean copy, and its own masked copy
    assert layout.position_features(1, (2, 2, 2)).shape == (8, layout.NUM_FEATURES)


@pytest.mark.parametrize(
    "size, digits",
    [(2, ()), (256, ()), (1000, (8, 5, 5, 5)), (4096, ()), (64000, (8, 8, 8, 5, 5, 5)), (1 << 18, ())],
)
def test_group_heads_are_distributions(size, digits):
    torch.manual_seed(0)
    head = GroupHead(size, 16, digits)
    hidden = torch.randn(1, 1, 16)
    if size <= 64000:
        codes = torch.arange(size)[None]
        nll = head.nll(hidden.expand(1, size, 16), codes)
        assert abs(nll.neg().exp().sum().item() - 1) < 1e-4  # over all ids the probabilities sum to one
    ids = head.sample(hidden.expand(1, 500, 16), Sampler([0], hidden.device))
    assert int(ids.min()) >= 0 and int(ids.max()) < size


@pytest.mark.parametrize("size, digits", [(256, ()), (4096, ()), (64000, (8, 8, 8, 5, 5, 5))])
def test_a_head_that_is_pointed_at_a_code_prefers_it_and_no_other(size, digits):
    torch.manual_seed(0)
    head = GroupHead(size, 16, digits)
    hidden = torch.randn(1, 1, 16)
    strength = torch.nn.Linear(16, head.num_groups)
    torch.nn.init.zeros_(strength.weight)
    codes, at = torch.arange(size)[None], torch.full((1, size), size * 3 // 7)
    plain = head.nll(hidden.expand(1, size, 16), codes)

    def pointed(bias, trust=1.0):
        torch.nn.init.constant_(strength.bias, bias)
        return head.nll(hidden.expand(1, size, 16), codes, [Point(at, torch.full((1, size), trust), strength)])

    assert torch.equal(pointed(0.0), plain) and torch.equal(pointed(1.0, trust=0.0), plain)
    sure = pointed(2.0)
    assert abs(sure.neg().exp().sum().item() - 1) < 1e-4  # a distribution still
    assert int(sure.argmin()) == size * 3 // 7 and sure.min() < 0.01
    # Behind a digit that differs nothing points any more: ids of another first digit keep their order among themselves.
    other = (codes % head.sizes[0] != size * 3 // 7 % head.sizes[0])[0]
    shift = (sure - plain)[0, other]
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), atol=1e-4, rtol=1e-4)
    point = Point(at[:, :200], torch.ones(1, 200), strength)
    assert (head.sample(hidden.expand(1, 200, 16), Sampler([0], hidden.device), [point]) == size * 3 // 7).all()


def test_groups_of_a_head_follow_the_digits():
    assert GroupHead(64000, 16, (8, 8, 8, 5, 5, 5)).sizes == [64, 200, 5]
    assert GroupHead(1000, 16, (8, 5, 5, 5)).sizes == [1000]
    with pytest.raises(ValueError, match=r"power of two of them, or digits, got 5000 codes and the digits \(8, 5\)"):
        GroupHead(5000, 16, (8, 5))


def test_word_head_prefers_its_target_after_a_step():
    torch.manual_seed(0)
    head = WordHead(torch.randn(50, 8), 16)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    hidden, target = torch.randn(1, 4, 16), torch.tensor([[3, 7, 7, 49]])
    for _ in range(100):
        optimizer.zero_grad()
        head.nll(hidden, target).mean().backward()
        optimizer.step()
    assert torch.equal(head.logits(hidden).argmax(-1), target)


def test_nucleus_keeps_the_smallest_sufficient_set():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert keep_nucleus(logits, 0.7).isfinite().tolist() == [True, True, False, False]
    assert keep_nucleus(logits, 0.01).isfinite().tolist() == [True, False, False, False]
    assert torch.equal(keep_nucleus(logits, 1.0), logits)


def test_samples_follow_the_distribution():
    logits = torch.tensor([0.6, 0.3, 0.1]).log().expand(1, 20000, 3)
    ids = Sampler([0], logits.device)(logits)
    share = ids.flatten().bincount(minlength=3) / 20000
    torch.testing.assert_close(share, torch.tensor([0.6, 0.3, 0.1]), atol=0.015, rtol=0)


def test_guidance_moves_away_from_the_unconditional():
    conditional, unconditional = torch.tensor([[[1.0, 0.9]]]), torch.tensor([[[1.0, 0.0]]])
    both = torch.cat([conditional, unconditional])
    draw = Sampler([0], both.device)
    draw.temperature, draw.weights = 0, guidance_weights(Decoding(guidance=3.0), 2, 0, 1)
    assert draw(both).tolist() == [[1], [1]]  # 1 + 3 (1 - 1) < 0 + 3 (0.9 - 0); both branches get the answer


def test_guidance_weights():
    both = Decoding(guidance=4.0, guidance_given=2.0, ramp=(0.0, 1.0))
    assert guidance_weights(both, 3, 0, 5) == (1, 0, 0)  # at the first level there is none yet
    assert guidance_weights(both, 3, 4, 5) == (4, -2, -1)  # none + 2 (given - none) + 4 (all - given)
    assert guidance_weights(both, 3, 2, 5) == (2.5, -1, -0.5)
    assert guidance_weights(Decoding(guidance=4.0), 2, 0, 1) == (4, -3)
    assert guidance_weights(both, 1, 4, 5) == (1,)


def test_a_row_draws_the_same_beside_any_other():
    logits = torch.randn(3, 7, 11)
    together = Sampler([5, 6, 7], logits.device)
    alone = Sampler([6], logits.device)
    assert torch.equal(together(logits)[1], alone(logits[1:2])[0])
    assert torch.equal(together.gumbel(4)[1], alone.gumbel(4)[0])


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 4, 4), (2, 8, 8), (3, 5, 7)])
def test_a_halton_order_visits_every_cell(grid):
    order = halton_order(grid)
    assert sorted(order) == list(range(math.prod(grid)))


def test_a_halton_order_spreads():
    """The first quarter of the cells lies in all quarters of the grid, unlike scan order."""
    cells = [divmod(index, 8) for index in halton_order((1, 8, 8))[:16]]
    quarters = [
        sum(1 for y, x in cells if (y < 4, x < 4) == quarter)
        for quarter in ((True, True), (True, False), (False, True), (False, False))
    ]
    assert min(quarters) >= 3


def test_turns_and_passes():
    assert turns(16, 4) == [2, 5, 10, 16] and turns(1, 9) == [1]
    assert turns(5, 100)[-1] == 5 and len(turns(5, 100)) == 5
    blocks = layout.blocks_of(PYRAMIDS, 2)
    assert num_passes(Decoding("next-level", passes=9), blocks) == len(blocks)
    assert num_passes(Decoding("raster"), blocks) == sum(block.count for block in blocks)
    assert num_passes(Decoding(passes=(1, 3)), blocks) == 1 + 3 + 1 + 3
    assert num_passes(Decoding(passes=1, first_passes=(1, 4)), blocks) == 1 + 4 + 1 + 1


@pytest.mark.parametrize(
    "values, message",
    [
        ({"decoder": "beam"}, "decoder must be one of next-level, masked, raster, got 'beam'"),
        ({"order": "spiral"}, "order must be one of random, halton, confidence, got 'spiral'"),
        ({"passes": 0}, "passes must be at least 1"),
        ({"passes": ()}, "passes must be at least 1"),
        ({"first_passes": (2, 0)}, "passes must be at least 1"),
        ({"temperature": (1.0, -1.0)}, "temperature must be finite and 0 or more"),
        ({"guidance_given": float("nan")}, "guidance_given must be finite and 0 or more, got nan"),
        ({"ramp": (0, 2)}, "ramp must be two shares from 0 to 1"),
    ],
)
def test_decoding_is_checked(values, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**values)


def test_what_is_not_remembered_takes_no_place():
    blocks = layout.blocks_of(PYRAMIDS, 2, memory=1)
    assert [(b.level, b.start, b.stop, b.remembered) for b in blocks] == [
        (0, 0, 1, True),
        (1, 1, 5, False),
        (0, 1, 2, True),
        (1, 2, 10, False),
    ]
    assert layout.num_remembered(blocks) == 2
    pads = torch.tensor([0])
    masked = layout.masked_intervals(blocks[1:], pads, 5, 7)
    assert masked[0, 0].tolist() == [0, 6, 7, 11]  # the first clean block, and itself
    assert masked[0, 4].tolist() == [0, 6, 11, 12]  # nothing of the block that is not remembered
    assert layout.places_of(blocks[2:], 5).tolist() == [6, *range(7, 15)]
