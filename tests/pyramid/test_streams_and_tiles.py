"""Many streams through one model, any chunk plan, frames in tiles: the same codes and frames, for any weights."""

import dataclasses
import itertools

import pytest
import torch

from pyramid.nn import passes
from pyramid.nn.adaptive_norm import AdaptiveGroupNorm, frame_statistics
from pyramid.nn.blocks import split_state, stack_states
from pyramid.nn.passes import Passes, spans
from pyramid.quantize import LevelConfig
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig
from pyramid.tokens import concatenate_chunks

TINY = TokenizerConfig(
    height=16,
    width=16,
    channels=(8, 16),
    depths=(1, 2),
    dim=24,
    depth=2,
    latent_dim=16,
    levels=(LevelConfig("words", 1, 1, 1), LevelConfig("bits", 1, 2, 2, bits=6), LevelConfig("fsq", 2, 4, 4)),
)


def make(**changes):
    torch.manual_seed(0)
    tokenizer = PyramidTokenizer(dataclasses.replace(TINY, **changes))
    for parameter in tokenizer.parameters():  # far from the initial values: nothing is nearly zero by design
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return tokenizer.eval()


@pytest.fixture(
    scope="module",
    params=[{}, {"kernel": 5, "gelu": "erf", "expand": 3}, {"adaptive_norm": True, "patch": 4, "linear_path": False}],
    ids=["plain", "wide", "adaptive"],
)
def tokenizer(request):
    return make(**request.param)


def clip(frames, height=16, width=16, batch=1, seed=0):
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def same(a, b):
    return all(torch.equal(x, y) for p, q in zip(a.ids, b.ids, strict=True) for x, y in zip(p, q, strict=True))


def agreement(a, b):
    """Share of equal ids of each level."""
    equal = [[(x == y).flatten() for x, y in zip(p, q, strict=True)] for p, q in zip(a.ids, b.ids, strict=True)]
    return [torch.cat(parts).float().mean().item() for parts in zip(*equal, strict=True)]


# ------------------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize("frames", [1, 2, 9, 14, 33])
@pytest.mark.parametrize("size", [(16, 16), (20, 44)])
def test_a_stream_is_the_whole_clip_bit_for_bit(tokenizer, frames, size):
    video = clip(frames, *size)
    plan = [1, *[8] * ((frames - 1) // 8), *([(frames - 1) % 8] if (frames - 1) % 8 else [])]
    parts = list(tokenizer.encode_stream(video.split(plan, dim=2)))
    whole = tokenizer.encode(video)
    assert same(concatenate_chunks(parts), whole)
    for detail in (1, 3):
        decoded = torch.cat(list(tokenizer.decode_stream(iter(parts), detail)), dim=2)
        assert torch.equal(decoded, tokenizer.decode(whole, detail))


def test_a_stream_may_stop_and_go_on(tokenizer):
    """The state is a value: kept, copied, used twice, it gives the same."""
    video = clip(25)
    _, state = tokenizer.encode_chunk(video[:, :, :1], None)
    ids, after = tokenizer.encode_chunk(video[:, :, 1:9], state)
    kept = [past.clone() for past in after]
    tokenizer.encode_chunk(video[:, :, 17:25], after)
    assert all(torch.equal(a, b) for a, b in zip(kept, after, strict=True))
    again, _ = tokenizer.encode_chunk(video[:, :, 1:9], state)
    assert all(torch.equal(a, b) for a, b in zip(ids, again, strict=True))


def test_many_streams_advance_in_one_pass(tokenizer):
    """Streams at different places of clips of different length, batched: each gets what it would get alone."""
    videos = [clip(33, seed=1), clip(17, seed=2), clip(25, seed=3)]
    alone = [tokenizer.encode(video) for video in videos]
    decoded_alone = [tokenizer.decode(tokens) for tokens in alone]
    starts = [0, 16, 8]  # pixel frames after the first that a stream has behind it before they meet
    states, decoders = [], []
    for video, start in zip(videos, starts, strict=True):
        state = decoder = None
        for first, last in itertools.pairwise([0, *range(1, start + 2, 8)]):
            ids, state = tokenizer.encode_chunk(video[:, :, first:last], state)
            _, decoder = tokenizer.decode_chunk(ids, decoder, height=16, width=16)
        states.append(state)
        decoders.append(decoder)
    meeting = [1 + start for start in starts]
    live = [index for index, video in enumerate(videos) if meeting[index] + 8 <= video.shape[2]]
    assert live == [0, 2]
    batch = torch.cat([videos[index][:, :, meeting[index] : meeting[index] + 8] for index in live])
    ids, state = tokenizer.encode_chunk(batch, stack_states([states[index] for index in live]))
    frames, decoder = tokenizer.decode_chunk(
        ids, stack_states([decoders[index] for index in live]), height=16, width=16
    )
    for row, index in enumerate(live):
        chunk = 1 + starts[index] // 8
        for got, expected in zip(ids, alone[index].ids[chunk], strict=True):
            assert torch.equal(got[row : row + 1], expected)
        first = meeting[index]
        torch.testing.assert_close(frames[row : row + 1], decoded_alone[index][:, :, first : first + 8])
    # parted again, each goes on alone
    for index, part, drawn in zip(live, split_state(state), split_state(decoder), strict=True):
        first, chunk = meeting[index] + 8, 2 + starts[index] // 8
        ids, _ = tokenizer.encode_chunk(videos[index][:, :, first : first + 8], part)
        assert all(torch.equal(a, b) for a, b in zip(ids, alone[index].ids[chunk], strict=True))
        pixels, _ = tokenizer.decode_chunk(ids, drawn, height=16, width=16)
        torch.testing.assert_close(pixels, decoded_alone[index][:, :, first : first + 8])


def test_states_stack_and_split():
    states = [[torch.randn(n, 2, 3), torch.randn(n, 4)] for n in (1, 2)]
    stacked = stack_states(states)
    assert [past.shape[0] for past in stacked] == [3, 3]
    for state, again in zip(states, split_state(stacked, [1, 2]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(state, again, strict=True))
    with pytest.raises(ValueError, match="at least one stream, got none"):
        stack_states([])
    with pytest.raises(ValueError, match="expected states of one shape"):
        stack_states([states[0], [torch.randn(1, 2, 4), torch.randn(1, 4)]])


@pytest.mark.parametrize("changed", [1, 3, 4])
def test_no_frame_is_drawn_from_later_latents(tokenizer, changed):
    """Norms and their modulation included, when training runs a clip at once."""
    latent = torch.randn(2, 16, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    other = latent.clone()
    other[:, :, changed] = 3 - other[:, :, changed]
    detail = torch.tensor([3, 3])
    with torch.no_grad():
        a, b = (tokenizer.decoder(z, detail)[0] for z in (latent, other))
    first = 1 + 4 * (changed - 1)
    assert torch.equal(a[:, :, :first], b[:, :, :first])
    assert not torch.equal(a[:, :, first : first + 4], b[:, :, first : first + 4])


def test_the_adaptive_norm_normalizes_each_frame_and_listens_to_its_latent():
    norm = AdaptiveGroupNorm(32, 8)
    x = 5 + 3 * torch.randn(2, 4, 6, 5, 32)
    statistics = frame_statistics(torch.randn(2, 8, 4, 6, 5))
    out = norm(x, norm.sums(x), statistics)
    expected = torch.nn.functional.group_norm(x.flatten(0, 1).movedim(-1, 1), norm.groups).movedim(1, -1)
    torch.testing.assert_close(out.flatten(0, 1), expected, atol=1e-4, rtol=1e-4)  # at first it changes nothing
    parts = norm.sums(x[:, :, :2]) + norm.sums(x[:, :, 2:])
    torch.testing.assert_close(norm(x, parts, statistics), out, atol=1e-5, rtol=1e-5)
    torch.nn.init.normal_(norm.modulate.weight)
    scale, shift = norm.modulate(statistics).chunk(2, dim=-1)
    modulated = norm(x, norm.sums(x), statistics)
    wanted = out * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    torch.testing.assert_close(modulated, wanted, atol=1e-3, rtol=1e-3)


# ------------------------------------------------------------------------------------------------ tiles


def test_spans_cover_once():
    for size, side, rim in itertools.product((1, 5, 16, 17), (1, 4, 16), (0, 1, 3)):
        seen = []
        for span in spans(size, side, rim):
            assert max(0, span.start - rim) == span.first and min(size, span.stop + rim) == span.last
            assert range(*span.kept) == range(span.start - span.first, span.stop - span.first)
            seen += range(span.start, span.stop)
        assert seen == list(range(size))


@pytest.mark.parametrize("tile", [8, 16, 40])
@pytest.mark.parametrize("size", [(48, 72), (41, 130)])
def test_tiles_have_no_seams(tokenizer, tile, size):
    video = clip(10, *size)
    whole, tiled = tokenizer.encode(video), tokenizer.encode(video, tile=tile)
    assert min(agreement(whole, tiled)) > 0.99  # equal but for a number that lies on a code's boundary to rounding
    expected, decoded = tokenizer.decode(whole), tokenizer.decode(whole, tile=tile)
    torch.testing.assert_close(decoded, expected, atol=2e-5, rtol=0)


def test_the_rim_is_what_the_network_sees(tokenizer):
    """A pixel reaches no further than the rim, and about as far: it is no wider than it has to be by two cells."""
    c = tokenizer.config
    cells = 4 * c.rim + 3
    video = torch.zeros(1, 3, 1, c.stride, cells * c.stride)
    video.requires_grad_()
    x = tokenizer.encoder._alone(video.movedim(1, -1), slice(0, 1))
    (grad,) = torch.autograd.grad(x[:, :, :, cells // 2].sum(), video)
    reached = grad[0, :, 0].abs().sum(dim=(0, 1)).nonzero().flatten() // c.stride - cells // 2
    assert reached.abs().max() in range(max(1, c.rim - 2), c.rim + 1)


def test_seams_would_show_with_a_narrow_rim(monkeypatch):
    """The test above can fail: without the rim, tiles differ."""
    tokenizer = make()
    tokens = tokenizer.encode(clip(1, 48, 72))
    expected = tokenizer.decode(tokens)
    monkeypatch.setattr(tokenizer.decoder, "rim", 0)
    assert (tokenizer.decode(tokens, tile=16) - expected).abs().max() > 1e-3


def test_tiles_stream_too(tokenizer):
    video = clip(17, 40, 24)
    parts = list(tokenizer.encode_stream(video.split([1, 8, 8], dim=2), tile=16))
    assert same(concatenate_chunks(parts), tokenizer.encode(video, tile=16))
    decoded = torch.cat(list(tokenizer.decode_stream(iter(parts), tile=16)), dim=2)
    assert torch.equal(decoded, tokenizer.decode(concatenate_chunks(parts), tile=16))


@pytest.mark.parametrize("tile", [0, -8, 3])
def test_tiles_smaller_than_a_cell_are_refused(tokenizer, tile):
    tokens = tokenizer.encode(clip(1))
    for call in (lambda: tokenizer.encode(clip(1), tile=tile), lambda: tokenizer.decode(tokens, tile=tile)):
        with pytest.raises(ValueError, match=f"tile must be at least the stride of . pixels, got {tile}"):
            call()


def test_passes_take_a_few_frames_and_one_tile(monkeypatch):
    """What bounds the memory: no pass sees more than its share, and none is left out."""
    monkeypatch.setattr(passes, "PASS_PIXELS", 2 * 16 * 16)
    seen = []

    def network(part, frames):
        seen.append((tuple(part.shape[1:4]), frames))
        return part[:, :, ::2, ::2] * 2

    x = torch.randn(1, 5, 16, 16, 3)
    with torch.no_grad():
        out = Passes((4, 4), 4, None, 1)(network, x)
    assert torch.equal(out, x[:, :, ::2, ::2] * 2)
    assert [shape for shape, _ in seen] == [(2, 16, 16), (2, 16, 16), (1, 16, 16)]
    seen.clear()
    with torch.no_grad():
        out = Passes((4, 4), 4, 8, 1)(network, x)
    assert torch.equal(out, x[:, :, ::2, ::2] * 2)
    assert {shape[1:] for shape, _ in seen} == {(12, 12)} and len(seen) == 4 * 2
    seen.clear()
    Passes((4, 4), 4, None, 1)(network, x.requires_grad_())
    assert [shape for shape, _ in seen] == [(5, 16, 16)]  # training runs all at once
