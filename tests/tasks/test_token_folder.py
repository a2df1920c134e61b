"""`pyramid data tokens` from the outside: what is written, what is refused, what goes on."""

from __future__ import annotations

import json

from lm.token_cache import TokenDataset
from tasks import cli


def run(capsys, *args) -> tuple[int, list[str], list[str]]:
    capsys.readouterr()
    code = cli.main(["data", "tokens", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def test_clips_become_tokens_once(capsys, model, tmp_path):
    out = tmp_path / "tokens"
    args = (model, "shapes:mini", "--val-clips", 3, "--out", out)
    code, lines, _ = run(capsys, *args, "--clips", 5, "--json")
    assert code == 0 and [json.loads(line)["clips"] for line in lines] == [5, 3]
    first = TokenDataset(out / "train")
    assert len(first) == 5 and first[0]["caption"]

    code, _, err = run(capsys, *args, "--clips", 4)
    assert code == 2 and "exists already and is not empty" in err[-1]
    code, _, err = run(capsys, *args, "--clips", 4, "--resume")
    assert code == 2 and "got another ['clips']" in err[-1]
    assert len(TokenDataset(out / "train")) == 5
    assert run(capsys, *args, "--clips", 4, "--overwrite", "--seed", 1)[0] == 0
    second = TokenDataset(out / "train")
    assert len(second) == 4 and second.said[0] != first.said[0]
    assert run(capsys, *args, "--clips", 4, "--resume", "--seed", 1)[0] == 0


def test_what_is_no_data_is_refused_before_anything_is_written(capsys, model, tmp_path):
    code, _, err = run(capsys, model, "nowhere", "--out", tmp_path / "tokens")
    assert code == 2 and "nowhere: expected shapes, shapes:PRESET or a folder of clips" in err[-1]
    assert list(tmp_path.iterdir()) == []
