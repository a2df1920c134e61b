"""Stages over streams of pieces: what is known stays, frames are neither lost nor doubled, memory does not grow."""

import pytest
import torch

from lm.backbone import LMConfig, make_backbone
from lm.editing import (
    Box,
    Piece,
    Writer,
    between,
    extend,
    forget,
    joined,
    outpaint,
    outward,
    paint,
    refine,
    regroup,
    roll,
    whole,
    widen,
)
from lm.model import PyramidLM
from lm.vocabulary import train_text_tokenizer
from pyramid.quantize import LevelConfig
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig

VIDEO = TokenizerConfig(
    height=16,
    width=16,
    num_frames=9,
    chunk_frames=4,
    channels=(8, 16),
    depths=(1, 1),
    dim=24,
    depth=1,
    latent_dim=16,
    levels=(LevelConfig("bits", 1, 1, 1, bits=8), LevelConfig("bits", 1, 2, 2, bits=8), LevelConfig("bits", 1, 4, 4)),
)


@pytest.fixture(scope="module")
def writer():
    torch.manual_seed(0)
    config = LMConfig(dim=32, num_layers=1, num_heads=2, mlp=48, text_size=300, memory=2)
    text = train_text_tokenizer(["a red star"], 300)
    lm = PyramidLM(config, PyramidTokenizer(VIDEO), text, make_backbone(config, len(text))).eval()
    return Writer(lm, "a red star", seed=3, decoding={"decoder": "next-level"})


def clip(frames=11, size=(16, 16)):
    return torch.rand(1, 3, frames, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def pieces_of(video, *lengths):
    parts = video.split(lengths or video.shape[2], dim=2)
    return [next(whole(part)) for part in parts]


def test_regrouping_loses_nothing():
    video = clip(23)
    for first, then in ((9, 4), (1, 1), (40, 4), (23, 2)):
        parts = list(regroup(pieces_of(video, 1, 8, 8, 6), first, then))
        lengths = [part.num_frames for part in parts]
        assert lengths[0] == min(first, 23) and set(lengths[1:-1]) <= {then} and lengths[-1] <= max(first, then)
        assert torch.equal(joined(parts), video)


@pytest.mark.parametrize("frames", [1, 3, 9, 10, 13, 22])
def test_a_hole_is_filled_and_the_rest_stays_bit_for_bit(writer, frames):
    video, hole = clip(frames), Box(4, 2, 6, 8)
    out = joined(paint(writer, forget(pieces_of(video), hole), "inpaint"))
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[hole.rows, hole.columns] = True
    assert out.shape == video.shape
    assert torch.equal(out[..., ~inside], video[..., ~inside])
    assert (out[..., inside] != video[..., inside]).float().mean() > 0.9


@pytest.mark.parametrize("frames", [1, 13])
def test_landscape_becomes_portrait_and_back(writer, frames):
    video = clip(frames)
    tall, place = (40, 16), Box(0, 12, 16, 16)
    out = joined(outpaint(writer, widen(pieces_of(video), tall, 0, 12), tall, place))
    assert out.shape == (1, 3, frames, *tall) and torch.equal(out[..., 12:28, :], video)
    wide = joined(outpaint(writer, widen(pieces_of(out), (40, 60), 22, 0), (40, 60), Box(22, 0, 16, 40)))
    assert wide.shape == (1, 3, frames, 40, 60) and torch.equal(wide[..., 22:38], out)
    assert wide.isfinite().all() and (wide != 0).float().mean() > 0.95


@pytest.mark.parametrize("left", [0, 3, 11])
@pytest.mark.parametrize("side", [8, 16])
def test_boxes_grow_outward_until_all_is_known(left, side):
    known = torch.zeros(30, dtype=torch.bool)
    known[left : left + 6] = True
    for box in outward((8, 30), Box(left, 0, 6, 8), (8, side)):
        assert box.width <= side and known[box.columns].float().mean() >= 0.3
        known[box.columns] = True
    assert known.all()


def test_what_is_added_follows_what_is_there(writer):
    video = clip(7)
    out = joined(extend(writer, pieces_of(video, 1, 4, 2), 14))
    assert out.shape[2] == 21 and torch.equal(out[:, :, :7], video)
    short = joined(
        extend(writer, pieces_of(clip(3)), 4)
    )  # fewer than are given to a window: the first one stands still
    held = torch.cat([clip(3)[:, :, :1], clip(3)[:, :, :1], clip(3)], dim=2)
    assert short.shape[2] == 7 and torch.equal(short[:, :, :3], clip(3))
    assert not torch.equal(short[:, :, 3:], joined(extend(writer, pieces_of(clip(3)[:, :, -1:]), 4))[:, :, 1:])
    assert held.shape[2] == writer.overlap
    image = joined(extend(writer, pieces_of(clip(1)), 6))
    assert image.shape[2] == 7 and torch.equal(image[:, :, :1], clip(1))
    with pytest.raises(ValueError, match="expected at least one frame to go on from"):
        list(extend(writer, [], 3))


def test_a_long_clip_begins_as_a_longer_one_does(writer):
    short, long = (joined(roll(writer, count)) for count in (13, 25))
    assert short.shape[2] == 13 and long.shape[2] == 25
    assert torch.equal(short, long[:, :, :13])


def test_windows_are_seen_only_by_their_last_frames(writer, monkeypatch):
    """However long the clip, no more frames than a window are encoded or written at once."""
    seen, encode = [], writer.lm.tokenizer.encode
    monkeypatch.setattr(
        writer.lm.tokenizer, "encode", lambda video, *a, **k: seen.append(video.shape[2]) or encode(video, *a, **k)
    )
    assert sum(piece.num_frames for piece in roll(writer, 60)) == 60
    assert max(seen) == writer.overlap and len(seen) == (60 - 9) // 4 + 1 == len(writer.starts(60)) - 1
    assert writer.starts(14) == [0, 9, 13]
    assert [len(writer.starts(count)) for count in (1, 9, 10, 13, 14)] == [1, 1, 2, 2, 3]
    seen.clear()
    list(paint(writer, forget(pieces_of(clip(40), *[4] * 10), Box(0, 0, 8, 8)), "inpaint"))
    assert max(seen) <= writer.window


def test_a_storyboard_changes_its_prompt(writer):
    import dataclasses

    asked = []
    other = dataclasses.replace(writer, prompt=lambda frame: asked.append(frame) or ("a" if frame < 13 else "b"))
    list(roll(other, 21))
    assert asked == [0, 9, 13, 17]


@pytest.mark.parametrize("frames", [3, 6, 9])
def test_between_two_images(writer, frames):
    first, last = clip(1), clip(1).flip(3)
    out = between(writer, first, last, frames)
    assert out.shape[2] == frames
    assert torch.equal(out[:, :, :1], first) and torch.equal(out[:, :, -1:], last)
    with pytest.raises(ValueError, match="num_frames: expected from 3 to 9, got 10"):
        between(writer, first, last, 10)
    with pytest.raises(ValueError, match="expected two images"):
        between(writer, first, clip(1, (16, 24)), 5)


@pytest.mark.parametrize("task", ["stylize", "upscale", "refine"])
def test_what_is_written_anew_keeps_its_length(writer, task):
    video = clip(14)
    out = joined(paint(writer, pieces_of(video), task))
    assert out.shape == video.shape and (out != video).float().mean() > 0.9


def test_a_draft_gets_its_finer_levels(writer):
    draft = writer.lm.tokenizer.encode(clip(9), 2)
    assert refine(writer, draft).shape == (1, 3, 9, 16, 16)
    with pytest.raises(ValueError, match="expected a draft of fewer than 3 levels, got 3"):
        refine(writer, writer.lm.tokenizer.encode(clip(9)))


def test_known_is_never_written_over(writer):
    """A mask of any shape, changing from frame to frame."""
    video = clip(13)
    known = torch.rand(1, 1, 13, 16, 16, generator=torch.Generator().manual_seed(2)) < 0.5
    out = joined(paint(writer, [Piece(video, known)], "inpaint"))
    kept = known.expand_as(video)
    assert torch.equal(out[kept], video[kept]) and not torch.equal(out[~kept], video[~kept])
