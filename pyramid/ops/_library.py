"""Finds and opens the extension, and decides who computes: the compiled ops or their references.

`pyramid._C` holds the CPU ops, `pyramid._C_cuda` the CUDA ones; the latter is opened only where torch has CUDA. Both
are opened at the first use of an op, so that `import pyramid` needs neither. Nothing else in the toolkit imports them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from types import ModuleType, TracebackType

import torch

BACKENDS = ("auto", "native", "reference")
BUILD_COMMAND = "pip install --no-build-isolation -e .   (or: python setup.py build_ext --inplace)"


def _check_backend(name: str, who: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{who}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_backend = _check_backend(os.environ.get("PYRAMID_BACKEND", "auto"), "PYRAMID_BACKEND")
_extension: ModuleType | None = None
_devices: set[str] = set()  # whose native kernels are open
_missing: dict[str, str] = {}  # device -> why it has none
_warned: set[str] = set()
_on_load: list[Callable[[], None]] = []


class backend:
    """Choose who computes the ops: `auto`, `native` or `reference`.

    As a function, `backend("reference")` sets it from now on; in a `with` statement it is put back at the end. The
    environment variable PYRAMID_BACKEND gives the start value.

    - `auto`: the compiled op; the plain PyTorch reference only where there is no compiled op for the tensor's device,
      with one warning.
    - `native`: the compiled op, or an error that names the build command.
    - `reference`: plain PyTorch.

    Raises:
        ValueError: for another name.
    """

    def __init__(self, name: str):
        global _backend
        self._before = _backend
        _backend = _check_backend(name, "pyramid.ops.backend")

    def __enter__(self) -> backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _backend
        _backend = self._before


def current_backend() -> str:
    return _backend


def on_load(register: Callable[[], None]) -> Callable[[], None]:
    """Call `register` once the schemas exist: the place for `register_fake` and `register_autograd`."""
    _on_load.append(register)
    if _extension is not None:
        register()
    return register


def load() -> bool:
    """Open the extension if it is there; True if it is. A broken one raises ImportError, an absent one doesn't."""
    global _extension
    if _extension is not None:
        return True
    if "cpu" in _missing:
        return False
    if importlib.util.find_spec("pyramid._C") is None:
        _missing["cpu"] = "the extension is not built"
        return False
    try:
        module = importlib.import_module("pyramid._C")
    except ImportError as error:
        raise ImportError(f"pyramid._C is built but does not load; build it again: {BUILD_COMMAND}") from error
    _devices.update(("cpu", "meta"))
    if torch.version.cuda is not None:
        spec = importlib.util.find_spec("pyramid._C_cuda")
        if spec is None or spec.origin is None:
            _missing["cuda"] = "the extension was built without CUDA kernels (nvcc in PATH, or PYRAMID_CUDA=1)"
        else:
            torch.ops.load_library(spec.origin)
            _devices.add("cuda")
    _extension = module
    for register in _on_load:
        register()
    return True


@torch.compiler.assume_constant_result
def _native_for(device_type: str, choice: str) -> bool:
    load()
    if device_type in _devices:
        return True
    why = _missing.get(device_type) or _missing.get("cpu") or f"there are no kernels for device {device_type}"
    if choice == "native":
        raise RuntimeError(f"pyramid.ops: backend is 'native' but {why}; build with: {BUILD_COMMAND}")
    if why not in _warned:
        _warned.add(why)
        warnings.warn(f"pyramid.ops: {why}; using the plain PyTorch reference. Build: {BUILD_COMMAND}", stacklevel=4)
    return False


def use_native(tensor: torch.Tensor) -> bool:
    """Whether the op on this tensor is the compiled one, by the chosen backend."""
    if _backend == "reference":
        return False
    return _native_for(tensor.device.type, _backend)


def build_info() -> dict[str, object]:
    """What was built: compiler, flags, instruction sets, CUDA architectures, torch; `built` says whether at all."""
    info: dict[str, object] = {"built": load(), "backend": _backend, "torch_running": torch.__version__}
    if _extension is not None:
        info |= _extension.build_info()
        info["devices"] = sorted(_devices - {"meta"})
    return info


class instruction_set:
    """Use a lesser instruction set (`base`, `avx2`, `avx512`) inside a `with`: for tests and benchmarks.

    Raises:
        RuntimeError: when the extension is absent. ValueError: for a set that was not built or isn't there.
    """

    def __init__(self, name: str):
        if not load() or _extension is None:
            raise RuntimeError(f"instruction_set: the extension is not built; build with: {BUILD_COMMAND}")
        self._before = _extension.build_info()["instruction_set_used"]
        _extension.set_instruction_set(name)

    def __enter__(self) -> instruction_set:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert _extension is not None
        _extension.set_instruction_set(self._before)
