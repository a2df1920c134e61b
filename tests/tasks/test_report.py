from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tasks.report import Clip, Clips, Curves, Figures, Picture, Section, Table, Words, write_report


def frames(num: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 8, 8, 3), dtype=np.uint8)


def report(tmp_path, *blocks) -> str:
    path = tmp_path / "report.html"
    write_report(path, "A <title>", [Section("One & two", "text < text", blocks)])
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf8")


def test_the_file_needs_nothing_from_outside(tmp_path):
    page = report(
        tmp_path,
        Figures({"PSNR": "28.1 dB"}),
        Table(["a", "b", "c"], [["x<y", 3, True], ["z", 0.123456, False]]),
        Curves({"loss": ([0, 1, 2], [3.0, 2.0, 1.0]), "val": ([0, 2], [3.0, 2.5])}, "step", "loss", log_y=True),
        Picture(frames(1)[0], "a sheet"),
        Clips([("row", [Clip(frames(), "it's a <clip>", good=True), Clip(frames(), good=False)])]),
        Words([(Clip(frames()), "a red star", [["star"], ["red", "star", "<b>", "left"]])]),
    )
    links = re.findall(r"(?:src|href)=['\"]?([^'\" >]+)", page)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "url(http" not in page
    assert "<b>left" not in page
    assert "&lt;b&gt;" in page
    assert "currentColor" in page
    assert "#010203" not in page


def test_tags_are_closed(tmp_path):
    page = report(tmp_path, Table(["a"], [[1]]), Clips([("", [Clip(frames(), "x")])]))
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Checker().feed(page)
    assert open_tags == []


def test_a_clip_is_lossless(tmp_path):
    original = frames(4)
    page = report(tmp_path, Clips([("", [Clip(original, fps=8)])]))
    data = re.search(r"data:image/png;base64,([^']+)", page)[1]
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.n_frames == 4
    for index, frame in enumerate(original):
        picture.seek(index)
        assert np.array_equal(np.asarray(picture.convert("RGB")), frame)


def test_wrong_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"uint8 frames \(T, H, W, 3\), got float64 \(3, 8, 8\)"):
        report(tmp_path, Clips([("", [Clip(np.zeros((3, 8, 8)))])]))
