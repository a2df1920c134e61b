"""Awkward and broken files through the verbs with the shipped model: a result, or exit 2 and one line; no leftovers.

The files lie beside the repository and are not part of it; without them these tests are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyramid.data.video import read_clip
from tasks import cli
from tasks.models import shipped_names

DATA = Path(__file__).parents[2] / "../shared/data"
MANIFEST = DATA / "nasty/manifest.jsonl"
ROWS = [json.loads(line) for line in MANIFEST.read_text(encoding="utf8").splitlines()] if MANIFEST.is_file() else []

pytestmark = [
    pytest.mark.skipif(not ROWS, reason="needs ../shared/data"),
    pytest.mark.skipif(not shipped_names(), reason="the shipped model is absent"),
]


def run(capsys, *args) -> tuple[int, list[dict], list[str]]:
    capsys.readouterr()
    code = cli.main([*map(str, args), "--json"])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err.splitlines()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: Path(row["path"]).name)
def test_caption_and_reconstruct(row, capsys, tmp_path):
    path, readable = DATA / row["path"], bool(row["ffmpeg_5_1_reads"]["frames"])
    out = tmp_path / "out.mp4"
    for args in (["caption", path], ["reconstruct", path, "--detail", "2", "--max-side", "48", "--out", out]):
        code, records, said = run(capsys, *args)
        assert len(records) == 1 and records[0]["input"] == str(path)
        assert not any("Traceback" in line for line in said)
        if readable:
            assert code == 0 and "error" not in records[0]
        else:
            faults = [line for line in said if line.startswith(f"pyramid {args[0]}: {path}: expected ")]
            assert code == 2 and len(faults) == 1 and faults[0].endswith(records[0]["error"])
    if readable:
        assert records[0]["frames"] == row["ffmpeg_5_1_reads"]["frames"] == read_clip(out).shape[1]
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"] * readable
