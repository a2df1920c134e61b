"""Stroke files and the zips they come in: what is read, and what each broken one is told."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from made_strokes import LINE, member, small_set, text, write_zip

from pyramid.data.omniglot import Drawing, StrokeError, find_drawings, parse_strokes, read_strokes


def test_strokes_are_read_with_y_downwards_and_time_from_the_first_point():
    data = b"START\n17.5,-26.25,100\n18.5,-27.25,350\nBREAK\r\n70,-24,3210\nBREAK\n\n"
    first, second = parse_strokes(data, "x")
    assert first.tolist() == [[17.5, 26.25, 0], [18.5, 27.25, 250]]
    assert second.tolist() == [[70, 24, 3110]]


def test_a_clock_that_steps_back_waits():
    (stroke,) = parse_strokes(text([(1, 1, 0), (2, 1, 40), (3, 1, 17), (4, 1, 60)]).encode(), "x")
    assert stroke[:, 2].tolist() == [0, 40, 40, 60]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x: expected at least one stroke, got none"),
        (b"START\n", "x: expected at least one stroke, got none"),
        (b"START\n1,-1,0\n", "x: expected BREAK after the last stroke, got the end of the file"),
        (b"START\nBREAK\n", "x, line 2: expected x,y,t or BREAK after a stroke, got 'BREAK'"),
        (b"START\n1,-1,0\nBREAK\nSTART\n", "x, line 4: expected x,y,t or BREAK after a stroke, got 'START'"),
        (b"START\n1,-1\nBREAK\n", "x, line 2: expected x,y,t or BREAK after a stroke, got '1,-1'"),
        (b"START\n1,-1,0,0\nBREAK\n", "line 2: expected x,y,t"),
        (b"START\n\xff\xfe,1,2\nBREAK\n", "line 2: expected x,y,t"),
        (b"START\nnan,-1,0\nBREAK\n", "x, line 2: expected a point of a 105x105 canvas and its time, got 'nan,-1,0'"),
        (b"START\n1,-1,inf\nBREAK\n", "line 2: expected a point of a 105x105 canvas"),
        (b"START\n1,-1,-5\nBREAK\n", "line 2: expected a point of a 105x105 canvas"),
        (b"START\n4000,-1,0\nBREAK\n", "line 2: expected a point of a 105x105 canvas"),
    ],
)
def test_a_broken_file_is_named_with_its_line(data, message):
    with pytest.raises(StrokeError, match=message):
        parse_strokes(data, "x")


def test_drawings_are_found_with_their_labels(tmp_path):
    drawings, repeated = find_drawings([small_set(tmp_path / "a.zip", "Japanese_(katakana)")])
    assert repeated == 0
    assert [(d.key, d.split) for d in drawings] == [
        ("Japanese_(katakana)/character01/01", "train"),
        ("Japanese_(katakana)/character01/16", "train"),
        ("Japanese_(katakana)/character01/17", "val"),
        ("Japanese_(katakana)/character23/01", "train"),
        ("Japanese_(katakana)/character23/16", "train"),
        ("Japanese_(katakana)/character23/17", "val"),
    ]
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert [len(read_strokes(file, d)) for d in drawings] == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("count", "caption"),
    [
        (1, "writing Early Aramaic character 3 in one stroke"),
        (4, "writing Early Aramaic character 3 in four strokes"),
        (29, "writing Early Aramaic character 3 in 29 strokes"),
    ],
)
def test_captions(tmp_path, count, caption):
    assert Drawing(tmp_path, "", "Early_Aramaic", 3, 1).caption(count) == caption


def test_a_drawing_of_two_zips_is_taken_once(tmp_path):
    one, two = small_set(tmp_path / "one.zip"), small_set(tmp_path / "two.zip", drawers=(16, 17, 18))
    drawings, repeated = find_drawings([one, two])
    assert repeated == 4
    assert len(drawings) == len({d.key for d in drawings}) == 8
    other = write_zip(tmp_path / "other.zip", {member("Greek", 1, 1): text(LINE)})
    with pytest.raises(ValueError, match=f"{other}: expected each drawing once, got another .*01.txt than {one} has"):
        find_drawings([one, other])


def test_what_is_no_zip_of_strokes_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.zip: expected a zip of Omniglot's strokes, found nothing"):
        find_drawings([tmp_path / "nowhere.zip"])
    with pytest.raises(FileNotFoundError, match="expected a zip of Omniglot's strokes, found a folder"):
        find_drawings([tmp_path])
    text_file = tmp_path / "a.zip"
    text_file.write_text("START")
    with pytest.raises(ValueError, match=r"a.zip: expected a zip of Omniglot's strokes, got another file"):
        find_drawings([text_file])
    pictures = write_zip(tmp_path / "pictures.zip", {"images/Greek/character01/0394_01.png": b"x"})
    with pytest.raises(ValueError, match="expected stroke files .*, got 1 pictures; the strokes are in another zip"):
        find_drawings([pictures])
    with pytest.raises(ValueError, match="expected stroke files .*, got 2 other files"):
        find_drawings([write_zip(tmp_path / "texts.zip", {"a.txt": "x", "b.txt": "y"})])


def test_a_member_that_cannot_be_unpacked_is_a_stroke_error(tmp_path):
    path = write_zip(
        tmp_path / "a.zip", {member("Greek", 1, 1): text(LINE), member("Greek", 1, 2): "0" * (1 << 20 | 1)}
    )
    data = bytearray(path.read_bytes())
    data[30 + len(member("Greek", 1, 1)) + 8] ^= 0xFF  # behind its header: inside the compressed data
    path.write_bytes(data)
    (torn, long), _ = find_drawings([path])
    with zipfile.ZipFile(path) as file:
        with pytest.raises(StrokeError, match=r"a.zip, strokes/.*_01.txt: expected a file that can be unpacked, got"):
            read_strokes(file, torn)
        with pytest.raises(StrokeError, match="_02.txt: expected at most 1048576 bytes of strokes, got more"):
            read_strokes(file, long)


def test_strokes_are_float64(tmp_path):
    assert parse_strokes(text(LINE).encode(), "x")[0].dtype == np.float64
