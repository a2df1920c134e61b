"""csrc/resources.py on what ptxas 13.0 printed for four kernels of a few lines: one fine, one that calls, one with an
array on its stack, one that spills."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FINE = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN7pyramid7kernels4fineIfLi128EEEvPT_' for 'sm_90a'
ptxas info    : Function properties for _ZN7pyramid7kernels4fineIfLi128EEEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 512 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 1.335 ms
"""
CALLS = """\
ptxas info    : Compiling entry function '_Z5callsPKiPfi' for 'sm_80'
ptxas info    : Function properties for _Z5callsPKiPfi
    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 19 registers, used 0 barriers, 32 bytes cumulative stack size, 372 bytes cmem[0]
ptxas info    : Compile time = 7.633 ms
ptxas info    : Function properties for _Z6helperPKiPfi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
SPILLS = """\
ptxas info    : Overriding maximum register limit 256 for '_Z7spilledPKfPfi' with  32 of maxrregcount option
ptxas info    : Compiling entry function '_Z7spilledPKfPfi' for 'sm_80'
ptxas info    : Function properties for _Z7spilledPKfPfi
    496 bytes stack frame, 744 bytes spill stores, 768 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 496 bytes cumulative stack size, 372 bytes cmem[0]
ptxas info    : Compile time = 19.230 ms
"""


@pytest.fixture(scope="module")
def resources():
    spec = importlib.util.spec_from_file_location("resources", ROOT / "csrc" / "resources.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["resources"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["resources"]


def test_every_figure_is_read(resources):
    fine, calls, helper, spilled = resources.parse(FINE + CALLS + SPILLS)
    assert (fine.architecture, fine.registers, fine.shared, fine.stack, fine.fault) == ("sm_90a", 10, 512, 0, None)
    assert (calls.architecture, calls.registers, calls.stack) == ("sm_80", 19, 32)
    assert (helper.symbol, helper.registers, helper.fault) == ("_Z6helperPKiPfi", None, None)
    assert (spilled.spill_stores, spilled.spill_loads, spilled.stack, spilled.registers) == (744, 768, 496, 32)
    assert spilled.fault == "spills registers: 744 bytes stored, 768 loaded"
    assert calls.fault.startswith("keeps 32 bytes on the stack")


@pytest.mark.parametrize(("text", "code"), [(FINE, 0), (FINE + CALLS, 1), (FINE + SPILLS, 1)])
def test_spills_and_stacks_fail(resources, capsys, tmp_path, text, code):
    (tmp_path / "kernel.log").write_text(text)
    assert resources.main([str(tmp_path / "kernel.log")]) == code
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 + len(resources.parse(text))
    assert bool(err) == bool(code)


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt")
def test_names_are_short(resources):
    symbol = (
        "_ZN7pyramid7kernels58_GLOBAL__N__8387142b_20_bit_quantize_cuda_cu_b5e6ca46_522112bit_quantizeINS0_4HalfEEE"
        "vNS0_17BitQuantizeParamsIT_EE"
    )
    names = resources.short_names([symbol, "_ZN7pyramid7kernels4fineIfLi128EEEvPT_"])
    assert list(names.values()) == ["bit_quantize<Half>", "fine<float, 128>"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got a log without any kernel"),
        ("\n".join(FINE.splitlines()[:4]), "got the end of the log"),
        ("\n".join(FINE.splitlines()[:2]) + "\n" + SPILLS, "expected the registers of"),
        (FINE + "    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", "the name of a function first"),
    ],
)
def test_what_is_not_understood_is_no_success(resources, text, message):
    with pytest.raises(ValueError, match=message):
        resources.parse(text)
