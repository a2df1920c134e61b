"""What a row of the table of ops says (the rows: cases_<op>.py, the table: cases.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# A device and generator make the tensors: make(dtype, device) -> arguments.
Make = Callable[[torch.dtype, torch.device], tuple[Any, ...]]


@dataclass(frozen=True)
class Sample:
    name: str
    make: Make


@dataclass(frozen=True)
class Op:
    """`native` and `reference` take the same arguments and return tensors in the same order."""

    name: str  # in torch.ops.pyramid
    native: Callable[..., Any]
    reference: Callable[..., Any]
    samples: Sequence[Sample]  # the first two are small: gradcheck takes them
    empty: Sample
    errors: Sequence[tuple[str, type[Exception], str, Callable[[torch.device], Any]]]
    integers: tuple[int, ...] = ()  # outputs that are integers
    # Of the outputs, those whose gradient is compared with autograd of the reference; () = not differentiable.
    differentiable: tuple[int, ...] = ()
    gradcheck: Callable[..., Any] | None = None  # arguments -> the outputs that a difference quotient can see
    dtypes: tuple[torch.dtype, ...] = field(default=FLOATS)
    # Flat arguments -> those of the schema, where that takes a list of tensors.
    pack: Callable[..., tuple[Any, ...]] = lambda *args: args
    # For the emulator, CUDA's operator on the CPU, where their dtypes differ: the CPU's arguments -> CUDA's; CUDA's
    # results -> the CPU's.
    to_cuda: Callable[..., tuple[Any, ...]] = lambda *args: args
    from_cuda: Callable[[Any], Any] = lambda results: results
    # The reference with what 16-bit tensor cores round (the factors of every product), for 16-bit results of CUDA
    # kernels that use them; None: the reference itself.
    on_tensor_cores: Callable[..., Any] | None = None
    keeps_layout: bool = False  # the result lies in memory as the input does; else it is contiguous
    # Large enough for several threads; None: the third sample, repeated 40 times along the first axis.
    large: Sample | None = None


def plain_on_cuda(op: Op, dtype: torch.dtype) -> Callable[..., Any]:
    """What a CUDA kernel is measured by: plain PyTorch at the same precision."""
    return op.on_tensor_cores if op.on_tensor_cores and dtype.itemsize == 2 else op.reference


def randn(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, scale: float = 1.0, shift: float = 0.0):
    return (torch.randn(shape, dtype=torch.float64) * scale + shift).to(dtype).to(device)
