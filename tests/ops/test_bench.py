"""The benchmark: rows of the agreed form, rivals that compute the same, nothing left out in silence. Its figures are
not tested, and nothing is compiled here: that takes minutes."""

from __future__ import annotations

import json
import os

import pytest
import torch

from pyramid.ops import _library, bench
from pyramid.ops.bench import Case, Contest, Skipped, attention, bits, codes, levels, measure, report

CPU = torch.device("cpu")
TINY = {
    "nearest_code": codes.nearest(20, 30, 4),
    "code_logsumexp": codes.logsumexp(70, 300, 6, perplexity=20.0),
    "bit_quantize": bits.quantize(20, 5, backward=False),
    "bit_quantize backward": bits.quantize(20, 5, backward=True),
    "joint_bit_entropy": bits.entropy(8, 6),
    "interval_attention": attention.blocks(90, dim=8),
    "interval_attention grouped": attention.blocks(30, heads=4, kv_heads=2, dim=8, backward=True),
    "interval_attention cached": attention.cached(3, 40, torch.float32),
    "level_resample": levels.resample(2, 3, (2, 4, 4), (1, 2, 2)),
    "level_resample up": levels.resample(2, 3, (1, 2, 2), (2, 4, 4), channels_last=True),
    "pyramid_sum": levels.summed(2, 3, levels.SMALL),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Shortest timing, and rivals as they are before compiling."""
    monkeypatch.setattr(measure, "MIN_SECONDS", 0.0)
    for module in (codes, bits, attention, levels):
        monkeypatch.setattr(module, "compiled", lambda function: function)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", TINY)
def test_rivals_compute_the_same(name):
    contest = TINY[name](CPU)
    ours = contest.ours()
    for rival, call in contest.rivals.items():
        if isinstance(call, str):
            continue
        if name == "nearest_code":
            theirs = call()
            ids = torch.from_numpy(theirs[1][:, 0]) if isinstance(theirs, tuple) else theirs
            assert torch.equal(ours.ids, ids), rival
        else:
            torch.testing.assert_close(call(), ours if isinstance(ours, torch.Tensor) else tuple(ours), msg=rival)


def test_the_softmax_is_not_degenerate():
    assert "sees 20 of 300 codes" in TINY["code_logsumexp"](CPU).note


def test_blocks_see_themselves_and_all_before():
    ends = attention.block_ends(346)
    assert ends.tolist() == [1] + [5] * 4 + [21] * 16 + [85] * 64 + [341] * 256 + [342] + [346] * 4
    assert attention.block_ends(343)[-1] == 343  # cut short


@pytest.mark.parametrize("name", TINY)
def test_rows_have_the_agreed_keys(name):
    results = list(bench.rows_of(Case(name.split()[0], "tiny", "cpu", TINY[name])))
    rows = [result for result in results if not isinstance(result, Skipped)]
    skipped = {result.rival for result in results if isinstance(result, Skipped)}
    assert {row["rival"] for row in rows} | skipped - {""} == set(TINY[name](CPU).rivals)
    for row in rows:
        assert tuple(row) == bench.KEYS
        assert row["ratio"] == row["rival_ms"] / row["ours_ms"] > 0
        assert row["device"].endswith(str(_library.build_info().get("instruction_set_used", "no extension")))


def test_default_cases_cover_every_op_on_both_devices():
    for device in ("cpu", "cuda"):
        cases = bench.default_cases(device)
        assert list(dict.fromkeys(case.op for case in cases)) == list(bench.OPS)
        assert len({(case.op, case.name) for case in cases}) == len(cases)


def test_what_gives_no_time_is_told():
    def broken():
        raise OSError("no compiler\nand a long trace")

    def make(device):
        return Contest(lambda: None, {"absent": "is not installed", "broken": broken, "there": lambda: None}, "a note")

    said = []
    lines = bench.Report("cpu", lambda row, text: said.append(text), said.append)
    for result in bench.rows_of(Case("op", "case", "cpu", make)):
        lines.add(result)
    assert [row["rival"] for row in lines.rows] == ["there"]
    assert said[-4:-1] == [
        "# op case: a note",
        "# op case: absent: no time, is not installed",
        "# op case: broken: no time, OSError: no compiler",
    ]


def test_only_compiled_ops_are_timed():
    case = Case("made_up", "tiny", "cpu", lambda device: Contest(lambda: None, {}))
    if not _library.load():
        with pytest.raises(RuntimeError, match="expected the extension built for cpu"):
            list(bench.run([case]))
        return
    with pytest.raises(RuntimeError, match="expected a compiled form of made_up for CPU, found none"):
        list(bench.run([case]))
    rows = list(bench.run([Case("nearest_code", "tiny", "cpu", TINY["nearest_code"])]))
    assert "addmm+argmin" in {row["rival"] for row in rows if not isinstance(row, Skipped)}


def test_the_summary_counts_the_best_rival():
    def row(case, rival, ratio):
        return {"op": "op", "case": case, "rival": rival, "ratio": ratio}

    rows = [row("a", "slow", 9.0), row("a", "fast", 2.0), row("b", "fast", 8.0)]
    assert report.summary(rows) == ["# op: the best rival's ratio 2.00 8.00, geometric mean 4.00"]


def test_files_hold_what_was_said(tmp_path):
    lines = bench.Report("cpu", lambda row, text: None, lambda text: None)
    for result in bench.rows_of(Case("nearest_code", "tiny", "cpu", TINY["nearest_code"])):
        lines.add(result)
    lines.close(tmp_path / "new" / "ops")
    assert json.loads((tmp_path / "new" / "ops.json").read_text()) == lines.rows
    text = (tmp_path / "new" / "ops.txt").read_text()
    assert f"torch {torch.__version__.split('+')[0]}" in text and "faiss-cpu" in text
    assert text.splitlines() == lines.lines


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="no Linux to tell the peak")
def test_extra_memory_is_the_peak():
    def call():
        torch.ones(10 * 2**20)  # 40 MiB, given back
        return torch.ones(2**18)

    if "PYRAMID_SANITIZED" in os.environ:
        pytest.skip("the sanitizer keeps what is given back")
    for _ in range(2):
        assert 39 < measure.extra_mib(call, CPU) < 48


def test_settings_that_slow_a_rival_are_taken_away(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert any("OPENBLAS_CORETYPE=Haswell" in line for line in report.header(CPU))
    codes.nearest(4, 4, 4)(CPU)
    assert "OPENBLAS_CORETYPE" not in os.environ
