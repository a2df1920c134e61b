"""Skips, with a reason, what needs the extension where it isn't built, or CUDA kernels where they aren't."""

from __future__ import annotations

import pytest
import torch

from pyramid.ops import _library


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
