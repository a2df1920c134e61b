"""Who computes: auto, native, reference; with and without the extension; never in silence."""

from __future__ import annotations

import importlib.util
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pyramid import ops
from pyramid.ops import _library


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch):
    """The module as a new process sees it, under another name; `start(built, **env)` imports it."""

    def start(built: bool = True, **env: str) -> ModuleType:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        spec = importlib.util.spec_from_file_location("fresh_library", _library.__file__)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not built:
            real = importlib.util.find_spec
            hide = lambda name, package=None: None if name == "pyramid._C" else real(name, package)  # noqa: E731
            monkeypatch.setattr(importlib.util, "find_spec", hide)
        return module

    return start


def test_the_backend_is_put_back():
    before = ops.current_backend()
    with ops.backend("reference"):
        assert ops.current_backend() == "reference"
        with ops.backend("auto"):
            assert ops.current_backend() == "auto"
    assert ops.current_backend() == before


def test_an_unknown_backend_names_the_known_ones():
    before = ops.current_backend()
    with pytest.raises(ValueError, match="one of auto, native, reference, got 'fast'"):
        ops.backend("fast")
    assert ops.current_backend() == before


def test_the_environment_sets_the_start_value(fresh):
    assert fresh(PYRAMID_BACKEND="reference").current_backend() == "reference"
    with pytest.raises(ValueError, match="PYRAMID_BACKEND: expected one of auto, native, reference, got 'fast'"):
        fresh(PYRAMID_BACKEND="fast")


def test_all_backends_agree():
    z, codebook, x = torch.randn(6, 4), torch.randn(9, 4), torch.randn(6, 4)
    with ops.backend("reference"):
        near, bits = ops.nearest_code(z, codebook), ops.bit_quantize(x, 0.5)
    assert torch.equal(ops.nearest_code(z, codebook).ids, near.ids)
    assert torch.equal(ops.bit_quantize(x, 0.5).ids, bits.ids)


def test_without_the_extension_auto_warns_once(fresh):
    library, tensor = fresh(built=False, PYRAMID_BACKEND="auto"), torch.zeros(2)
    message = "the extension is not built; using the plain PyTorch .* Build: pip install"
    with pytest.warns(UserWarning, match=message) as seen:
        assert [library.use_native(tensor) for _ in range(3)] == [False] * 3
    assert len(seen) == 1
    assert library.build_info()["built"] is False


def test_without_the_extension_native_names_the_build_command(fresh):
    library = fresh(built=False, PYRAMID_BACKEND="native")
    with pytest.raises(RuntimeError, match="is 'native' but the extension is not built; build with: pip install"):
        library.use_native(torch.zeros(2))
    with pytest.raises(RuntimeError, match="instruction_set: the extension is not built"):
        library.instruction_set("base")


def test_a_broken_extension_is_no_absent_one(fresh, monkeypatch):
    library = fresh(PYRAMID_BACKEND="auto")
    broken = SimpleNamespace(import_module=lambda name: (_ for _ in ()).throw(ImportError("undefined symbol: x")))
    monkeypatch.setattr(library, "importlib", SimpleNamespace(util=importlib.util, **vars(broken)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: SimpleNamespace(origin="x"))
    with pytest.raises(ImportError, match="built but does not load; build it again: pip install"):
        library.use_native(torch.zeros(2))


def test_a_device_without_kernels_is_named():
    with pytest.raises(RuntimeError, match="backend is 'native' but .*device made_up"):
        _library._native_for("made_up", "native")


def test_the_public_ops_compile_in_one_graph_on_either_backend():
    if not _library.load():
        pytest.skip("the extension is not built")

    def both(z, codebook):
        near = ops.nearest_code(z, codebook)
        return near.ids, near.distance, ops.bit_quantize(z, 1.0).ids

    z, codebook = torch.randn(6, 4), torch.randn(9, 4)
    for name in ("native", "reference"):
        with ops.backend(name):
            compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
            for got, expected in zip(compiled(z, codebook), both(z, codebook), strict=True):
                torch.testing.assert_close(got, expected)


def test_build_info_says_what_was_built():
    info = ops.build_info()
    if not info["built"]:
        pytest.skip("the extension is not built")
    assert info["instruction_set_used"] in info["instruction_sets_compiled"]
    assert {"compiler", "flags", "torch", "cuda_architectures", "devices", "backend"} <= info.keys()


def test_an_unknown_instruction_set_is_refused():
    if not _library.load():
        pytest.skip("the extension is not built")
    with pytest.raises(ValueError, match="expected base, avx2 or avx512, got sse9"):
        _library.instruction_set("sse9")
