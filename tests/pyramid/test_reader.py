"""The network that reads words off a chunk: shapes at any size, windows, and what it learns that pooling does not."""

import pytest
import torch

from pyramid.levels import Level
from pyramid.nn.reader import WordReader

LEVELS = (Level(1, 1, 1), Level(1, 2, 2), Level(2, 2, 2))
GRIDS = [level.grid for level in LEVELS]


def make_reader(dim=32, depth=2):
    torch.manual_seed(0)
    return WordReader(LEVELS, (2, 4, 6), dim, 8, depth).eval()


@pytest.mark.parametrize("grid", [(2, 4, 6), (1, 4, 6), (2, 1, 1), (2, 8, 12), (2, 7, 20), (1, 3, 5)])
def test_each_position_gets_a_point_at_any_size(grid):
    wanted = [level.at(grid, (2, 4, 6)).grid for level in LEVELS]
    read = make_reader()(torch.randn(3, *grid, 32), wanted)
    assert [tuple(part.shape) for part in read] == [(3, *level, 8) for level in wanted]
    assert all(part.isfinite().all() for part in read)


def test_a_large_frame_is_read_in_windows():
    """Four chunks side by side say, in the corner of each, what it says alone."""
    reader, parts = make_reader(), torch.randn(4, 2, 4, 6, 32)
    rows = [torch.cat([parts[2 * i], parts[2 * i + 1]], dim=2) for i in range(2)]
    whole = reader(torch.cat(rows, dim=1)[None], [Level(*grid).at((2, 8, 12), (2, 4, 6)).grid for grid in GRIDS])
    alone = reader(parts, GRIDS)
    for level, (_, h, w) in enumerate(GRIDS):
        for index in range(4):
            i, j = divmod(index, 2)
            corner = whole[level][0, :, i * h : (i + 1) * h, j * w : (j + 1) * w]
            torch.testing.assert_close(corner, alone[level][index])


def test_one_clip_does_not_touch_another():
    reader, features = make_reader(), torch.randn(2, 2, 4, 6, 32)
    other = features.clone()
    other[1] += 1
    for a, b in zip(reader(features, GRIDS), reader(other, GRIDS), strict=True):
        assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


def test_every_position_asks_for_something_of_its_own():
    """Untrained, no two positions give the same point; nor does the order of the cells go unseen."""
    reader, features = make_reader(), torch.randn(1, 2, 4, 6, 32)
    points = torch.cat([part.flatten(1, 3) for part in reader(features, GRIDS)], dim=1)[0]
    assert torch.pdist(points).min() > 1e-3
    moved = torch.cat([part.flatten(1, 3) for part in reader(features.flip(3), GRIDS)], dim=1)[0]
    assert not torch.allclose(points, moved)


def test_two_things_that_look_alike_to_a_mean_are_told_apart():
    """Which of four marks stand on two of the cells, whichever: a set of two words from questions alone."""
    torch.manual_seed(0)
    reader = WordReader((Level(1, 1, 2),), (1, 3, 3), 32, 4, 1)
    marks, words = torch.randn(4, 32), torch.eye(4)
    optimizer = torch.optim.Adam(reader.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)

    def draw(count):
        shown = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(count)]).sort(dim=1).values
        at = torch.stack([torch.randperm(9, generator=generator)[:2] for _ in range(count)])
        cells = torch.zeros(count, 9, 32).scatter(1, at[..., None].expand(-1, -1, 32), marks[shown])
        return cells.view(count, 1, 3, 3, 32), shown

    for _ in range(150):
        cells, shown = draw(64)
        loss = (reader(cells, [(1, 1, 2)])[0].flatten(1, 3) - words[shown]).square().sum(dim=-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    cells, shown = draw(256)
    said = (reader(cells, [(1, 1, 2)])[0].flatten(1, 3) @ words.T).argmax(dim=-1)
    assert (said == shown).all(dim=1).float().mean() > 0.9
