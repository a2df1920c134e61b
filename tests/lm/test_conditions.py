"""Every task by what it gives: fills, masks, hints, exact tokens; and that a model is told of them."""

from dataclasses import replace

import pytest
import torch

from lm.backbone import LMConfig, make_backbone
from lm.conditions import (
    TASKS,
    Condition,
    Task,
    cell_share,
    draw_condition,
    edges,
    fill_between,
    fill_constant,
    fill_nearest,
    hinted,
    make_condition,
    soften,
)
from lm.context import hint_latents
from lm.layout import blocks_of
from lm.model import PyramidLM
from lm.train import LMTraining, TrainLMConfig
from lm.vocabulary import train_text_tokenizer
from pyramid.config import load
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.quantize import LevelConfig
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig
from tasks.models import shipped

VIDEO = TokenizerConfig(
    height=16,
    width=16,
    num_frames=17,
    channels=(8, 16),
    depths=(1, 1),
    dim=24,
    depth=1,
    latent_dim=16,
    levels=(LevelConfig("bits", 1, 1, 1, bits=8), LevelConfig("bits", 1, 2, 2, bits=8), LevelConfig("bits", 2, 4, 4)),
)
GIVEN_PIXELS = [name for name, task in TASKS.items() if task.fill or task.replace]


@pytest.fixture(scope="module")
def lm():
    torch.manual_seed(0)
    config = LMConfig(dim=32, num_layers=2, num_heads=2, mlp=48, text_size=300, memory=2)
    text = train_text_tokenizer(["a red star"], 300)
    lm = PyramidLM(config, PyramidTokenizer(VIDEO), text, make_backbone(config, len(text)))
    for parameter in lm.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return lm.eval()


def clips(count=2, frames=17, size=16):
    return torch.rand(count, 3, frames, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def mask(task, frames=17, size=16):
    known = torch.zeros(frames, size, size, dtype=torch.bool)
    if task == "animate":
        known[0] = True
    elif task == "continue":
        known[:9] = True
    elif task == "interpolate":
        known[[0, -1]] = True
    elif task == "inpaint":
        known[:] = True
        known[:, 4:12, 4:12] = False
    elif task == "outpaint":
        known[:, :, 4:12] = True
    else:
        known[:] = True
    return known


def test_every_task_has_a_token_of_its_own(lm):
    ids = [lm.vocabulary.task(name) for name in (*TASKS, "caption")]
    assert len(set(ids)) == len(TASKS) + 1


@pytest.mark.parametrize("task", GIVEN_PIXELS)
def test_a_task_is_made_from_pixels_and_generated(lm, task):
    video = clips()
    condition = make_condition(lm.tokenizer, task, video, mask(task))
    exact = {"animate": 1, "continue": 2, "interpolate": 1}.get(task, 0)
    assert (condition.tokens.num_chunks if condition.tokens else 0) == exact
    assert (condition.hint is None) == (task in ("animate", "continue"))
    tokens = lm.generate(["a red star", ""], condition=condition, seed=2)
    assert tokens.num_frames == 17 and tokens.num_levels == 3
    whole = lm.tokenizer.encode(video)
    for chunk in range(exact):  # what is known exactly is what the clip's own tokens are
        assert all(torch.equal(a, b) for a, b in zip(tokens.ids[chunk], whole.ids[chunk], strict=True))
    assert not torch.equal(tokens.ids[2][2], whole.ids[2][2])


@pytest.mark.parametrize("task", hinted())
def test_a_hint_has_a_say(lm, task):
    """The same seed with the hint of another clip writes another clip."""
    video = clips(4)
    first, other = (make_condition(lm.tokenizer, task, part, mask(task)) for part in (video[:2], video[2:]))
    a, b = (lm.generate(["", ""], condition=given, seed=1, temperature=0.5).flatten() for given in (first, other))
    assert not torch.equal(a, b)
    assert {draw_condition(lm.tokenizer, task, video, torch.Generator().manual_seed(0)).task} == {task}


def test_nothing_of_the_unknown_pixels_is_seen(lm):
    """The condition of two clips that differ where nothing is known is the same."""
    for task in ("animate", "continue", "interpolate", "inpaint", "outpaint"):
        known = mask(task)
        video, other = clips(1), clips(1)
        other[:, :, ~known] = torch.nan
        a, b = (make_condition(lm.tokenizer, task, part, known) for part in (video, other))
        for x, y in ((a.tokens, b.tokens), (a.hint, b.hint)):
            assert (x is None) == (y is None) and (x is None or torch.equal(x.flatten(), y.flatten()))


def test_a_draft_is_kept_and_refined(lm):
    draft = lm.tokenizer.encode(clips(), 2)
    tokens = lm.generate(["", ""], condition=Condition("refine", draft=draft), seed=1)
    assert torch.equal(tokens.truncate(2).flatten(), draft.flatten()) and tokens.num_levels == 3
    made = make_condition(lm.tokenizer, "refine", clips(), levels=2)
    assert torch.equal(made.draft.flatten(), draft.flatten())
    coarse = lm.generate(["", ""], 1, condition=Condition("refine", draft=draft))
    assert torch.equal(coarse.flatten(), draft.truncate(1).flatten())


def test_what_comes_first_is_known_where_all_is_written_anew(lm):
    video, done = clips(), clips()[:, :, :9].flip(3)
    for task in ("stylize", "upscale", "refine"):
        condition = make_condition(lm.tokenizer, task, video, done=done)
        assert torch.equal(condition.tokens.flatten(), lm.tokenizer.encode(done).flatten())
        tokens = lm.generate(["", ""], condition=condition)
        assert all(torch.equal(a, b) for a, b in zip(tokens.ids[1], condition.tokens.ids[1], strict=True))


def test_fills():
    video = torch.arange(1.0, 6.0).view(1, 1, 5, 1, 1).expand(1, 3, 5, 4, 4) / 10
    known = torch.zeros(1, 1, 5, 4, 4, dtype=torch.bool)
    known[:, :, [0, 4]] = True
    assert torch.allclose(fill_between(video, known), video)  # it grows in a straight line
    known[:, :, 4] = False
    assert torch.equal(fill_between(video, known), video[:, :, :1].expand_as(video))  # nothing comes after
    assert not fill_constant(video, torch.zeros_like(known)).any()
    ramp = torch.arange(4.0).expand(1, 3, 1, 4, 4)
    inside = torch.zeros(1, 1, 1, 4, 4, dtype=torch.bool)
    inside[..., 1:3] = True
    assert fill_nearest(ramp, inside)[0, 0, 0, 0].tolist() == [1, 1, 2, 2]
    assert not fill_nearest(ramp, inside & False).any()


def test_edges_are_of_structure_not_of_colour():
    square = -torch.ones(1, 3, 1, 16, 16)
    square[..., 4:12, 4:12] = 1
    found = edges(square)
    assert found.shape == square.shape and found.aminmax() == (-1, found.max()) and found.max() > 0.5
    assert found[0, 0, 0, 8, 8] == -1 and found[0, 0, 0, 4, 8] > 0.5
    coloured = square.clone()
    coloured[:, 0] = square[:, 0] * 0.2
    assert ((edges(coloured) > 0) == (found > 0)).float().mean() > 0.95


def test_softening_keeps_the_mean_and_loses_the_detail():
    video = clips(1, 3)
    soft = soften(video, 4)
    assert soft.shape == video.shape and (soft.mean() - video.mean()).abs() < 0.02
    assert soft.std() < 0.4 * video.std()
    flat = torch.full_like(video, 0.3)
    assert torch.allclose(soften(flat, 3), flat)


def test_shares_count_known_pixels_of_a_cell(lm):
    known = torch.zeros(1, 1, 17, 16, 16, dtype=torch.bool)
    known[:, :, 0, :, :4] = True
    known[:, :, 16] = True
    share = cell_share(known, lm.tokenizer)
    assert [part.shape[1:] for part in share] == [(1, 4, 4), (2, 4, 4), (2, 4, 4)]
    assert share[0][0, 0, 0].tolist() == [1, 0, 0, 0] and not share[1].any()
    assert share[2][0, 1].unique().tolist() == [0.25] and not share[2][0, 0].any()
    odd = cell_share(torch.ones(1, 1, 4, 13, 10, dtype=torch.bool), lm.tokenizer)
    assert all((part == 1).all() for part in odd)


def test_a_cell_without_known_pixels_gives_no_hint(lm):
    condition = make_condition(lm.tokenizer, "outpaint", clips(), mask("outpaint"))
    latents = hint_latents(lm.tokenizer, condition)
    assert not latents[1][..., 0].any() and latents[1][:, :-1, ..., 1].any()
    assert (latents[1][:, -1, ..., 1] == 1).all()


@pytest.mark.parametrize("task", hinted())
def test_masks_to_train_on_leave_something_to_do(task):
    rule = TASKS[task]
    if rule.draw is None:
        return
    for seed in range(50):
        known = rule.draw((17, 24, 32), torch.Generator().manual_seed(seed))
        assert known.shape == (17, 24, 32) and 0.04 < known.float().mean() < 0.95


@pytest.mark.parametrize(
    ("task", "known", "message"),
    [
        ("generate", None, "expected a task that is given pixels, one of animate"),
        ("dance", None, "got 'dance'"),
        ("inpaint", torch.ones(17, 16, 8, dtype=torch.bool), r"expected bool \(1 or 2, 1, 17, 16, 16\)"),
        ("inpaint", torch.ones(17, 16, 16), "got torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(lm, task, known, message):
    with pytest.raises(ValueError, match=message):
        make_condition(lm.tokenizer, task, clips(), known)


def test_a_condition_must_fit_the_clips(lm):
    condition = make_condition(lm.tokenizer, "inpaint", clips(), mask("inpaint"))
    for arguments, message in (
        ({"prompts": [""]}, "hint: expected 1 clips of 16x16"),
        ({"prompts": ["", ""], "size": (24, 16)}, "hint: expected 2 clips of 24x16"),
        ({"prompts": ["", ""], "num_frames": 25}, "hint: expected 25 frames, got 17"),
    ):
        with pytest.raises(ValueError, match=message):
            lm.generate(**arguments, condition=condition)


def test_the_clips_are_as_long_as_those_the_condition_is_of(lm):
    video = torch.cat([clips(), clips()[:, :, 1:9]], dim=2)  # 25 frames, the first chunks given, of the rest nothing
    known = torch.zeros(25, *video.shape[3:], dtype=torch.bool)
    known[:9] = True
    condition = make_condition(lm.tokenizer, "continue", video, known)
    assert condition.hint is None and lm.generate(["", ""], condition=condition).num_frames == 25
    nothing = make_condition(lm.tokenizer, "inpaint", video[..., :24, :16], known[..., :24, :16] & False)
    assert lm.generate(["", ""], 1, condition=nothing).height == min(24, video.shape[3])


def test_a_chunk_that_was_cut_is_not_whole(lm):
    cut = Condition("continue", lm.tokenizer.encode(clips()[:, :, :6]))
    with pytest.raises(ValueError, match="expected whole chunks, .* got 6 frames of 17"):
        lm.generate(["", ""], condition=cut)
    assert lm.generate(["", ""], condition=cut, num_frames=6).num_frames == 6


def test_a_model_that_was_not_made_for_a_task_says_so(lm):
    config = LMConfig(dim=32, num_layers=1, num_heads=2, mlp=32, tasks=("generate", "caption"))
    small = PyramidLM(config, lm.tokenizer, lm.text, make_backbone(config, len(lm.text))).eval()
    with pytest.raises(ValueError, match="this model knows generate, caption; got 'refine'"):
        small.generate([""], condition=Condition("refine", draft=lm.tokenizer.encode(clips(1), 1)))
    assert small.generate(["x"]).num_levels == 3


def test_a_task_of_ones_own(lm, monkeypatch):
    """The worked example of docs/generation.md: colour for a clip in grey."""

    def grey(video, factor):
        return video.mean(dim=1, keepdim=True).expand_as(video)

    monkeypatch.setitem(TASKS, "colour", Task("a clip in colour from one in grey", replace=grey))
    config = LMConfig(dim=32, num_layers=1, num_heads=2, mlp=48, text_size=300, tasks=(*TASKS, "caption"))
    own = PyramidLM(config, lm.tokenizer, lm.text, make_backbone(config, len(lm.text)))
    assert own.vocabulary.task("colour") not in [own.vocabulary.task(name) for name in TASKS if name != "colour"]
    training = LMTraining(load(TrainLMConfig, {"mix": {"tasks": {"colour": 1.0}}}), own)
    training.log = training.log_dict = lambda *args, **kwargs: None
    steps = [step for step in range(200) if training.group(step).task == "colour"]
    assert steps
    training.step = steps[0]
    assert training.objective({"video": clips(), "caption": ["a red star", ""]}).isfinite()
    condition = make_condition(lm.tokenizer, "colour", clips())
    grey_tokens = lm.tokenizer.encode(grey(clips(), 1))
    assert torch.equal(condition.hint.flatten(), grey_tokens.flatten())
    assert own.eval().generate(["a red star", ""], condition=condition).num_levels == 3


def test_a_copy_is_what_the_tokenizer_would_say(lm):
    """Of the hint, and of a clip that stands still as the chunk before ended."""
    hint = make_condition(lm.tokenizer, "upscale", clips(), factor=2)
    shown = hint_latents(lm.tokenizer, hint)
    context, ended = lm.context(2, 16, 16, shown), {}
    for block in blocks_of(lm.tokenizer.pyramids(17), 3, lm.memory):
        seen, levels = context.at(block), lm.tokenizer.levels
        copied, trust = seen.copies["hint"]
        assert torch.equal(copied, levels.answer(shown[block.chunk][:, :-1].contiguous(), context.cells).flatten(1))
        assert (trust == 1).all() and ("before" in seen.copies) == (block.chunk > 0)
        if block.chunk:
            still = ended[block.chunk - 1].expand(-1, -1, 2, -1, -1).contiguous()
            assert torch.equal(seen.copies["before"][0], levels.answer(still, context.cells).flatten(1))
        context.add(block, hint.hint.ids[block.chunk][block.level].flatten(1))
        ended[block.chunk] = context.known[:, :, -1:]
    plain = PyramidLM(replace(lm.config, copies=False), lm.tokenizer, lm.text, lm.backbone)
    assert not plain.copies and not plain.context(2, 16, 16).at(blocks_of(lm.tokenizer.pyramids(17), 1)[0]).copies


def test_copies_of_a_trained_tokenizer_are_its_codes():
    """Where the coarser levels are those of the reference, the finest code that copies it is the reference's own."""
    tokenizer = PyramidTokenizer.from_pretrained(shipped("mini") / "tokenizer")
    video = ShapesDataset(preset("mini"), "test")[0]["video"][None]
    ids = tokenizer.encode(video).ids[1]
    grid = tokenizer.latent_grid(32, 32)
    cells = [part.cells(part.quantizer.ids_to_codes(i)) for i, part in zip(ids, tokenizer.levels.levels, strict=True)]
    for level in range(2, 5):
        copied = tokenizer.levels.answer(tokenizer.levels.decode(ids[: level + 1], grid), cells[:level])
        assert (copied == ids[level]).float().mean() > 0.9
