"""The benchmark gives rows of the agreed form; its figures are not tested."""

from __future__ import annotations

import pytest

from pyramid.ops import _library, bench


def test_rows_have_the_agreed_keys(monkeypatch):
    if not _library.load():
        pytest.skip("the extension is not built")
    monkeypatch.setattr(bench, "MIN_SECONDS", 0.0)
    cases = [
        bench.Case("nearest_code", "small", "cpu", bench._nearest(20, 30, 4)),
        bench.Case("bit_quantize", "small", "cpu", bench._bits(20, 5, backward=True)),
    ]
    rows = bench.run(cases)
    keys = ["op", "case", "device", "ours_ms", "rival", "rival_ms", "ratio", "ours_mib", "rival_mib"]
    assert {row["op"] for row in rows} == {"nearest_code", "bit_quantize"}
    for row in rows:
        assert list(row) == keys and row["ratio"] == row["rival_ms"] / row["ours_ms"] > 0


def test_default_cases_cover_the_compiled_ops():
    assert {case.op for case in bench.default_cases()} == {"nearest_code", "bit_quantize"}
