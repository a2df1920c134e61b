import pytest

from pyramid.levels import Level, Pyramid, check_detail, chunk_lengths, in_order


def test_counts_offsets_and_prefixes():
    pyramid = Pyramid((Level(1, 1, 1), Level(1, 2, 2), Level(2, 4, 4)))
    assert pyramid.counts == (1, 4, 32)
    assert pyramid.offsets == (0, 1, 5, 37)
    assert pyramid.num_tokens == 37
    assert pyramid.prefix(2) == Pyramid((Level(1, 1, 1), Level(1, 2, 2)))


@pytest.mark.parametrize("detail", [0, 4, -1])
def test_detail_outside_the_pyramid_is_refused(detail):
    with pytest.raises(ValueError, match=rf"someone: detail must be from 1 to 3, got {detail}"):
        check_detail(detail, 3, "someone")


def test_levels_follow_the_latent():
    reference = (2, 4, 4)
    assert Level(2, 4, 4).at((2, 9, 16), reference) == Level(2, 9, 16)  # the finest level is the latent's own grid
    assert Level(1, 2, 2).at((2, 8, 12), reference) == Level(1, 4, 6)
    assert Level(2, 4, 4).at((1, 4, 4), reference) == Level(1, 4, 4)  # an image chunk has one latent frame
    assert Level(1, 1, 1).at((2, 1, 1), reference) == Level(1, 1, 1)  # never empty


@pytest.mark.parametrize("frames, expected", [(1, [1]), (9, [1, 8]), (10, [1, 8, 1]), (17, [1, 8, 8]), (3, [1, 2])])
def test_chunk_lengths(frames, expected):
    assert chunk_lengths(frames, 8) == expected
    with pytest.raises(ValueError, match="a clip must have at least one frame, got 0"):
        chunk_lengths(0, 8)
    with pytest.raises(ValueError, match="a chunk must have at least one frame, got 0"):
        chunk_lengths(frames, 0)


@pytest.mark.parametrize(
    "shapes, message",
    [
        ([(2, 1, 6, 5), (2, 8, 6, 5), (2, 3, 6, 5)], None),
        ([(2, 4, 6, 5)], "chunk 0: expected at most 1 frames, got 4"),
        ([(2, 1, 6, 5), (2, 9, 6, 5)], "chunk 1: expected at most 8 frames, got 9"),
        ([(2, 1, 6, 5), (2, 4, 6, 5), (2, 4, 6, 5)], "chunk 1 is not the last: expected 8 frames, got 4"),
        ([(2, 1, 6, 5), (1, 8, 6, 5)], r"chunk 1: expected batch, height, width \(2, 6, 5\), got \(1, 6, 5\)"),
        ([(2, 1, 6, 5), (2, 8, 6, 7)], r"chunk 1: .* \(2, 6, 5\), got \(2, 6, 7\)"),
    ],
)
def test_chunks_come_in_order(shapes, message):
    walk = in_order(iter(shapes), lambda shape: shape, 8, "someone")
    if message is None:
        assert list(walk) == shapes
    else:
        with pytest.raises(ValueError, match=f"someone: {message}"):
            list(walk)


def test_empty_grids_are_refused():
    with pytest.raises(ValueError, match=r"at least 1, got \(0, 1, 1\)"):
        Level(0, 1, 1)
    with pytest.raises(ValueError, match="at least one level"):
        Pyramid(())
