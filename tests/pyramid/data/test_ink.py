"""Ink: when it appears, where, how thick, and that a seed gives it again."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_strokes import LINE, arrays
from PIL import Image
from scipy.ndimage import binary_dilation

from pyramid.data.ink import InkConfig, Look, cap_pauses, frame_times, render_ink
from pyramid.data.omniglot import CANVAS, find_drawings, read_strokes
from pyramid.data.paper import INKS, MIN_CONTRAST, PAPERS, contrast, make_ink, make_paper

DATA = Path(__file__).parents[3] / "../shared/data/omniglot"
DOT = [(50.0, 80.0, 2000.0)]


def plain(*strokes, **fields) -> np.ndarray:
    """Ink (T, H, W) in [0, 1], 1 for black, of the plain clip of some strokes."""
    config = InkConfig(**{"height": CANVAS, "width": CANVAS, "plain": True, **fields})
    _, frames = render_ink(arrays(*strokes), config, np.random.default_rng(0))
    clip = np.stack(list(frames))
    assert clip.dtype == np.uint8 and (clip[..., :1] == clip).all()
    return 1 - clip[..., 0] / 255


def coloured(seed: int, **fields) -> np.ndarray:
    _, frames = render_ink(arrays(LINE, DOT), InkConfig(**fields), np.random.default_rng(seed))
    return np.stack(list(frames))


def tip(ink: np.ndarray) -> float:
    """Where the ink of a stroke to the right ends, in pixels: ink of each row, summed."""
    return float(ink.sum() / ink.sum(axis=0).max())


def test_frame_times_reach_the_end_before_the_last_eighth():
    assert frame_times(1, 3.0).tolist() == [3.0]
    assert frame_times(2, 3.0).tolist() == [0.0, 3.0]
    assert frame_times(5, 4.0).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    times = frame_times(17, 14.0)
    assert times.tolist() == [*range(15), 14.0, 14.0]


def test_pauses_are_capped_and_all_else_is_kept():
    assert cap_pauses(np.array([0.0, 0.1, 5.0, 5.2]), 0.5) == pytest.approx([0.0, 0.1, 0.6, 0.8])
    assert cap_pauses(np.array([0.0]), 0.5).tolist() == [0.0]


def test_a_frame_shows_what_was_written_by_its_time():
    steady = [(20.0 + 0.6 * k, 50.0, 10.0 * k) for k in range(101)]
    ink = plain(steady, num_frames=17)
    lengths = np.array([tip(frame) for frame in ink])
    assert np.diff(lengths[:15]) == pytest.approx(60 / 14, abs=0.3)
    assert (ink[14] == ink[16]).all()
    assert tip(ink[16]) - tip(ink[0]) == pytest.approx(60, abs=0.5)  # one frame before the pen moves: a dot


@pytest.mark.parametrize("shape", [(64, 64), (48, 96), (130, 70), (16, 16)])
def test_ink_only_grows_and_any_frame_count_ends_alike(shape):
    strokes = arrays([(20, 20, 0), (70, 35, 400), (30, 60, 900)], [(40, 90, 1500), (80, 80, 1700)], DOT)
    clips = {t: plain(*strokes, height=shape[0], width=shape[1], num_frames=t) for t in (1, 2, 9, 40)}
    for t, ink in clips.items():
        assert ink.shape == (t, *shape)
        assert (np.diff(ink, axis=0) >= 0).all()
        assert ink[-1] == pytest.approx(clips[1][-1], abs=0.025)
        assert ink.max() > 0.5
    assert 0 < clips[9][0].sum() < 0.2 * clips[9][-1].sum()


def test_a_dot_appears_at_its_moment_and_not_before():
    ink = plain([(20.0, 50.0, 0.0), (80.0, 50.0, 1000.0)], DOT, num_frames=21, max_pause=1.0)
    dotted = ink[:, 75:86, 45:56].max(axis=(1, 2)) > 0.5
    moment = frame_times(21, 2.0)  # line 0 to 1 s, pause 1 to 2 s, the dot at 2 s
    assert dotted.tolist() == (moment >= 2.0).tolist()
    line = ink[:, 40:60].sum(axis=(1, 2))
    assert line[moment >= 1.0] == pytest.approx(line[-1])  # nothing but a pause
    assert (line[moment < 0.9] < line[-1] - 1).all()


def test_a_long_pause_counts_as_the_longest_allowed():
    def strokes(pause):
        later = 500.0 + pause
        first = [(20.0 + k, 30.0, 10.0 * k) for k in range(51)]
        return first, [(20.0 + k, 70.0, later + 10.0 * k) for k in range(51)]

    short = plain(*strokes(250.0), max_pause=0.25)
    assert (plain(*strokes(60_000.0), max_pause=0.25) == short).all()
    assert (plain(*strokes(60_000.0), max_pause=2.0) != short).any()


def test_the_line_is_thicker_where_the_pen_is_slow():
    slow_then_fast = [(20.0 + k, 50.0, 40.0 * k) for k in range(31)]
    slow_then_fast += [(50.0 + k, 50.0, 1200.0 + 5.0 * k) for k in range(1, 31)]
    thickness = plain(slow_then_fast, height=210, width=210, num_frames=1)[0].sum(axis=0)
    slow, fast = thickness[60:80].mean(), thickness[120:140].mean()
    assert 1.15 < slow / fast < 1.6
    assert slow == pytest.approx(2 * 3.6 * 1.2, rel=0.12)


def test_the_smoothing_keeps_corners_and_ends():
    ink = plain([(20.0, 20.0, 0.0), (80.0, 20.0, 500.0), (80.0, 80.0, 1000.0)], num_frames=1)[0]
    for x, y in ((20, 20), (79, 20), (80, 80)):
        assert ink[y, x] > 0.9
    assert ink[50, 50] == 0


def test_plain_is_the_canvas_and_ink_never_leaves_the_frame():
    rows, columns = np.nonzero(plain(LINE, num_frames=1)[0] > 0.5)
    assert rows.mean() + 0.5 == pytest.approx(50, abs=0.6)
    assert columns.min() == pytest.approx(18, abs=1) and columns.max() == pytest.approx(81, abs=1)
    inside = plain(LINE, num_frames=1)[0].sum()
    for dx, dy in ((-40, 0), (60, 0), (0, -70), (0, 80)):
        moved = plain([(x + dx, y + dy, t) for x, y, t in LINE], num_frames=1)[0]
        assert moved.sum() == pytest.approx(inside, rel=0.02)
    far = plain([(-50.0, 50.0, 0.0), (150.0, 50.0, 500.0)], num_frames=1)[0]  # wider than the canvas: made smaller
    assert far[:, [0, -1]].max() == 0 and far.sum() > inside


def test_a_seed_gives_the_clip_again_and_another_seed_another_look():
    assert (coloured(3) == coloured(3)).all()
    looks = {render_ink(arrays(LINE), InkConfig(), np.random.default_rng(seed))[0] for seed in range(40)}
    assert len(looks) == 40
    assert {look.ink for look in looks} == set(INKS) and {look.paper for look in looks} == set(PAPERS)
    assert render_ink(arrays(LINE), InkConfig(plain=True), np.random.default_rng(1))[0] == Look()


@pytest.mark.parametrize("paper", PAPERS)
def test_papers_differ_from_plain_and_stay_light(paper):
    sheets = [make_paper(paper, 64, 96, np.random.default_rng(seed)) for seed in range(8)]
    for sheet in sheets:
        assert sheet.shape == (64, 96, 3) and sheet.dtype == np.float32
        assert sheet.min() >= 0 and sheet.max() <= 1 and sheet.mean() > 0.75
    local = max(float(np.abs(np.diff(sheet.mean(axis=2), n=2, axis=0)).max()) for sheet in sheets)
    assert (local > 0.01) == (paper != "plain")


def test_every_ink_is_read_on_every_paper():
    rng = np.random.default_rng(0)
    for paper in PAPERS:
        for name in INKS:
            for _ in range(10):
                sheet, ink = make_paper(paper, 48, 48, rng), make_ink(name, rng)
                darkest = np.quantile(sheet.reshape(-1, 3), 0.02, axis=0)
                assert contrast(darkest, ink) >= MIN_CONTRAST, (paper, name)


def test_contrast_is_the_published_ratio():
    assert contrast(np.zeros(3), np.ones(3)) == pytest.approx(21)
    assert contrast(np.full(3, 0x76 / 255), np.ones(3)) == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"height": 15}, "InkConfig: height and width must be at least 16, got 15x64"),
        ({"num_frames": 0}, "InkConfig: num_frames must be at least 1, got 0"),
        ({"max_pause": 0.0}, "InkConfig: max_pause must be positive and finite, got 0.0"),
        ({"max_pause": float("nan")}, "InkConfig: max_pause must be positive and finite, got nan"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        InkConfig(**fields)
    with pytest.raises(ValueError, match="make_paper: expected one of plain, lined, grid, fibre, got 'silk'"):
        make_paper("silk", 16, 16, np.random.default_rng(0))


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_finished_clips_look_like_the_published_pictures():
    """Ours and theirs, black on white on the same canvas, within two pixels of each other."""
    drawings, _ = find_drawings([DATA / "strokes_background_small1.zip"])
    ours_near, theirs_near = [], []
    with (
        zipfile.ZipFile(DATA / "strokes_background_small1.zip") as strokes,
        zipfile.ZipFile(DATA / "images_background_small1.zip") as pictures,
    ):
        for drawing in drawings[::90]:
            ours = plain(*read_strokes(strokes, drawing), num_frames=1)[0] > 0.5
            name = drawing.member.replace("strokes_", "images_").replace(".txt", ".png")
            theirs = ~np.array(Image.open(io.BytesIO(pictures.read(name)))).astype(bool)
            ours_near.append(binary_dilation(theirs, iterations=2)[ours].mean())
            theirs_near.append(binary_dilation(ours, iterations=2)[theirs].mean())
    assert len(ours_near) > 25
    assert np.mean(ours_near) > 0.98 and np.mean(theirs_near) > 0.95
