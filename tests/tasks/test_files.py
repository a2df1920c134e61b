"""Which files a verb may write, and what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.files import claim, claim_folder, name_outputs


@pytest.mark.parametrize(
    ("out", "suffix", "name"),
    [
        ("x.gif", ".mp4", "x.gif"),
        ("x.xyz", ".mp4", "x.xyz"),
        ("out", "gif", "out/clip.gif"),
        ("out", ".gif", "out/clip.gif"),
        ("v1.0", ".mp4", "v1.0/clip.mp4"),
        ("there.mp4", ".mp4", "there.mp4/clip.mp4"),
    ],
)
def test_a_suffix_makes_a_file_name(tmp_path, monkeypatch, out, suffix, name):
    monkeypatch.chdir(tmp_path)
    Path("there.mp4").mkdir()
    assert name_outputs([Path("clip.mov")], Path(out), suffix) == [Path(name)]


def test_checking_outputs_makes_no_folder(tmp_path):
    claim([tmp_path / "new" / "x.mp4"], overwrite=False)
    claim_folder(tmp_path / "newer", overwrite=False)
    with pytest.raises(ValueError, match=r"x.xyz: expected a name that ends in .mp4, .*, got .xyz"):
        claim([tmp_path / "new" / "x.xyz"], overwrite=True)
    claim_folder(tmp_path / "model" / "out", overwrite=True, inputs=[tmp_path / "model"])
    for place in (tmp_path, tmp_path / "model"):
        with pytest.raises(ValueError, match="expected a folder apart from .*model, which is read"):
            claim_folder(place, overwrite=True, inputs=[tmp_path / "model"])
    assert list(tmp_path.iterdir()) == []
