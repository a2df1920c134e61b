"""Skips, with a reason, what needs the extension where it isn't built, or CUDA kernels where they aren't."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pyramid.ops import _library


def pytest_report_header() -> str:
    return f"pyramid._C: {_library.build_info().get('flags', 'not built')}"


def pytest_sessionstart() -> None:
    """`make sanitize` sets PYRAMID_SANITIZED: it must not pass on an ordinary build."""
    if "PYRAMID_SANITIZED" not in os.environ:
        return
    flags = str(_library.build_info().get("flags"))
    if "-fsanitize=address,undefined" not in flags or "libasan" not in Path("/proc/self/maps").read_text():
        pytest.exit(f"expected the extension built with sanitizers, got one with flags {flags}", returncode=1)


@pytest.fixture
def native(device: torch.device) -> torch.device:
    """The device, once its compiled ops are open."""
    if not _library.load():
        pytest.skip(f"the extension is not built: {_library.BUILD_COMMAND}")
    if device.type not in _library.build_info()["devices"]:
        pytest.skip(f"the extension has no kernels for {device.type}")
    return device


@pytest.fixture(params=["base", "avx2", "avx512"])
def instruction_set(request: pytest.FixtureRequest):
    """Every instruction set that is built and that this processor has."""
    if not _library.load():
        pytest.skip(f"the extension is not built: {_library.BUILD_COMMAND}")
    info = _library.build_info()
    sets = ["base", "avx2", "avx512"]
    if sets.index(request.param) > sets.index(str(info["instruction_set_detected"])):
        pytest.skip(f"this processor or build has no {request.param}")
    with _library.instruction_set(request.param):
        yield request.param
