"""Both ways of making one latent of many levels: what they share, and what each promises of its own."""

import itertools

import pytest
import torch

from pyramid.levels import dilated_positions
from pyramid.quantize import COMBINATIONS, AveragePyramid, LevelConfig, ResidualPyramid
from pyramid.words import WordTable

GRID = (2, 4, 4)
LEVELS = [
    LevelConfig("words", 1, 1, 1),
    LevelConfig("vq", 1, 2, 2),
    LevelConfig("fsq", 1, 4, 4),
    LevelConfig("bits", 2, 4, 4),
    LevelConfig("words", 2, 2, 3),  # a grid may be coarser again
]


@pytest.fixture(params=COMBINATIONS)
def pyramid(request):
    torch.manual_seed(0)
    return COMBINATIONS[request.param](LEVELS, 16, GRID, WordTable.load()).eval()


def test_levels_of_every_kind_make_one_pyramid(pyramid):
    latent = torch.randn(3, 16, *GRID)
    out = pyramid(latent)
    assert [tuple(ids.shape[1:]) for ids in out.ids] == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 4, 4), (2, 2, 3)]
    assert [query.shape[-1] for query in out.queries] == [96, 16, 4, 10, 96]
    assert torch.equal(out.latent, latent)
    for k in range(1, 6):
        torch.testing.assert_close(pyramid.decode(out.ids[:k], GRID), out.prefixes[k - 1], atol=1e-5, rtol=1e-5)
    assert out == out and out != pyramid(latent)  # records of tensors compare by identity, without an error


def test_the_first_levels_do_not_know_of_the_others(pyramid):
    latent = torch.randn(3, 16, *GRID)
    whole = pyramid(latent)
    for k in range(1, 6):
        part = pyramid(latent, k)
        assert len(part.ids) == len(part.prefixes) == len(part.losses) == k
        assert all(torch.equal(a, b) for a, b in zip(part.ids, whole.ids, strict=False))
        assert torch.equal(part.prefixes[-1], whole.prefixes[k - 1])


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 4, 4), (2, 3, 7), (4, 8, 5)])
def test_any_grid(pyramid, grid):
    out = pyramid(torch.randn(2, 16, *grid))
    assert pyramid.decode(out.ids, grid).shape == (2, 16, *grid)


def test_a_clip_of_a_batch_is_the_clip_alone(pyramid):
    latent = torch.randn(3, 16, *GRID)
    together, alone = pyramid(latent), pyramid(latent[1:2])
    assert all(torch.equal(a[1:2], b) for a, b in zip(together.ids, alone.ids, strict=True))


def test_every_level_learns(pyramid):
    """Through the pixels alone: the straight-through gradient reaches the latent and both projections of each level."""
    pyramid.train()
    latent = torch.randn(2, 16, *GRID, requires_grad=True)
    out = pyramid(latent)
    (out.prefixes[-1] * torch.randn(16, *GRID)).sum().backward()
    assert latent.grad.abs().sum() > 0
    for level in pyramid.levels:
        assert level.project_out.weight.grad.abs().sum() > 0 and level.project_in.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", COMBINATIONS.values())
def test_foreign_ids_are_refused(kind):
    pyramid = kind([LevelConfig("bits", 1, 2, 2, bits=4)], 8, (1, 4, 4))
    message = f"{kind.__name__}.decode: level 1: expected ids from 0 to 15, got 0 to 16"
    with pytest.raises(ValueError, match=message):
        pyramid.decode([torch.tensor([[[[0, 1], [2, 16]]]])], (1, 4, 4))


def test_residuals_add_up():
    torch.manual_seed(0)
    pyramid = ResidualPyramid([LevelConfig("bits", 1, 2**i, 2**i) for i in range(3)], 8, (1, 4, 4)).eval()
    out = pyramid(torch.randn(2, 8, 1, 4, 4))
    asked = out.latent
    for k in range(3):
        query = pyramid.levels[k].project_in(asked.movedim(1, -1)).unflatten(2, (2**k, -1)).unflatten(4, (2**k, -1))
        torch.testing.assert_close(query.mean((3, 5)), out.queries[k], atol=1e-5, rtol=1e-4)
        asked = out.latent - out.prefixes[k]


# -------------------------------------------------------------------------------------------- SPAE's average


def test_positions_are_spae_s():
    """Equation 1 of the paper, on its own grid of 16: 1-based s i - ceil(s / 2) + 1 for stride s."""
    for cells in (1, 2, 4, 8, 16):
        stride = 16 // cells
        assert dilated_positions(cells, 16) == [stride * i - -(-stride // 2) for i in range(1, cells + 1)]
    for size in range(1, 40):
        for cells in range(1, size + 1):
            places = dilated_positions(cells, size)
            assert places == sorted(set(places)) and places[0] >= 0 and places[-1] < size


def test_prefixes_cover_as_many_positions_as_in_the_paper():
    levels = [LevelConfig("bits", 1, n, n, bits=4) for n in (1, 2, 4, 8, 16, 16)]
    pyramid = AveragePyramid(levels, 4, (1, 16, 16))
    state, covered = pyramid._start(torch.zeros(1, 4, 1, 16, 16)), []
    for level in levels:
        state = pyramid._add(state, torch.zeros(1, 4, level.t, level.h, level.w))
        covered.append(int((state.count > 0).sum()))
    assert covered == [1, 5, 21, 85, 256, 256]
    assert sorted(set(state.count.tolist())) == [2.0, 3.0] and (state.count == 3).sum() == 85


@pytest.fixture
def average():
    """Levels that overlap in every way; the cells are given, so that the average can be taken by hand."""
    levels = [
        LevelConfig("bits", t, h, w, bits=3) for t, h, w in [(1, 1, 1), (1, 2, 3), (2, 4, 5), (1, 2, 3), (2, 4, 5)]
    ]
    pyramid = AveragePyramid(levels, 6, (2, 4, 5))
    return pyramid, [torch.randn(2, 6, level.t, level.h, level.w) for level in levels]


def by_hand(cells, grid):
    """Position by position, as the docstring of average.py says."""
    out = torch.empty(*cells[0].shape[:2], *grid)
    for place in itertools.product(*map(range, grid)):
        codes, last = [], []
        for level in cells:
            axes = [dilated_positions(n, size) for n, size in zip(level.shape[2:], grid, strict=True)]
            near = [min(range(len(a)), key=lambda i, a=a, p=p: abs(a[i] - p)) for a, p in zip(axes, place, strict=True)]
            last = level[:, :, near[0], near[1], near[2]]
            if all(a[i] == p for a, i, p in zip(axes, near, place, strict=True)):
                codes.append(last)
        out[:, :, place[0], place[1], place[2]] = torch.stack(codes).mean(0) if codes else last
    return out


def test_the_average_of_the_codes_and_the_nearest_where_there_is_none(average):
    pyramid, cells = average
    for k in range(1, 6):
        torch.testing.assert_close(pyramid.combine(cells[:k], (2, 4, 5)), by_hand(cells[:k], (2, 4, 5)))


def test_codes_that_are_what_was_asked_for_average_to_the_latent(average):
    """SAQ's point: a level that answers exactly brings the mean of all codes to z, whatever the levels before said."""
    pyramid, cells = average
    latent = torch.randn(2, 6, 2, 4, 5)
    state = pyramid._start(latent)
    for level in cells[:4]:
        state = pyramid._add(state, level)
    exact = (state.count + 1) * latent.flatten(2) - state.total
    last = pyramid._add(state, exact.unflatten(2, (2, 4, 5)))
    torch.testing.assert_close(pyramid._prefix(last), latent)


def test_a_level_is_asked_for_what_the_average_lacks(average):
    """z + sum(z - v) over the codes that the position has already."""
    pyramid, _ = average
    out = pyramid.eval()(torch.randn(2, 6, 2, 4, 5))
    values = [
        level.cells(level.quantizer.ids_to_codes(ids)) for level, ids in zip(pyramid.levels, out.ids, strict=True)
    ]
    z = out.latent[:, :, 1, 2, 2]  # (1, 1, 1), (2, 4, 5) and (2, 4, 5) stand there, (1, 2, 3) does not
    asked = z + (z - values[0][:, :, 0, 0, 0]) + (z - values[2][:, :, 1, 2, 2])
    torch.testing.assert_close(pyramid.levels[4].project_in(asked), out.queries[4][:, 1, 2, 2], atol=1e-5, rtol=1e-4)
