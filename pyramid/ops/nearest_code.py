"""Nearest code of a codebook (vector quantization: VQ-VAE, 1711.00937; frozen words: SPAE, 2306.17842).

Shapes: z (..., D), codebook (K, D), ids (...), distance (...). Not here: learning the codebook, straight-through
gradients, commitment (pyramid.quantize).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyramid.ops import _library, reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class NearestCode(NamedTuple):
    ids: Tensor  # (...) int64
    distance: Tensor  # (...) float32, float64 for float64


def nearest_code(z: Tensor, codebook: Tensor) -> NearestCode:
    """Find for each vector the code at the least squared Euclidean distance.

    Exact: of all codes, `ids` names one whose sum((z - e)^2), evaluated in float64 on the values given, is the least;
    codes at an equal distance go to the lowest id. So the id doesn't depend on the device, the number of threads or the
    other rows. (float64 rounding remains: two codes whose distances differ by less than about 1e-15 of themselves
    count as equal.) Differences are taken before squares, so nothing cancels however far the vectors are from zero. The
    N x K matrix is never formed. NaN and infinite distances lose; a row that has no other gets id 0.

    Args:
        z: (..., D) float32, float64, bfloat16 or float16. Arithmetic is in float32 or better whatever the dtype.
        codebook: (K, D), same dtype and device, K >= 1, D >= 1.

    Returns:
        ids (...) int64 and distance (...): the squared distance to that code, in float32 (float64 for float64),
        differentiable by z and by codebook.

    Raises:
        ValueError: shapes that don't fit, an empty codebook, two devices. TypeError: another dtype, two dtypes.
    """
    if z.ndim < 1 or codebook.ndim != 2 or z.shape[-1] != codebook.shape[1] or z.shape[-1] == 0:
        raise ValueError(
            "nearest_code: expected z (..., D) and codebook (K, D) with D >= 1, "
            f"got {tuple(z.shape)} and {tuple(codebook.shape)}"
        )
    if codebook.shape[0] == 0:
        raise ValueError("nearest_code: expected a codebook of at least one code, got none")
    if z.dtype not in FLOATS or z.dtype != codebook.dtype:
        raise TypeError(
            "nearest_code: expected z and codebook of one dtype among float32, float64, bfloat16 and float16, "
            f"got {z.dtype} and {codebook.dtype}"
        )
    if z.device != codebook.device:
        raise ValueError(f"nearest_code: expected one device, got z on {z.device} and codebook on {codebook.device}")
    if _library.use_native(z):
        distance, ids = torch.ops.pyramid.nearest_code.default(z, codebook)
        return NearestCode(ids, distance)
    return NearestCode(*reference.nearest_code(z, codebook))


def _fake(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    return z.new_empty(z.shape[:-1], dtype=dtype), z.new_empty(z.shape[:-1], dtype=torch.int64)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    z, codebook = inputs
    ctx.save_for_backward(z, codebook, output[1])


def _backward(ctx: Any, grad_distance: Tensor, _: Any) -> tuple[Tensor | None, Tensor | None]:
    """d |z - e|^2 = 2 (z - e) (dz - de): plain PyTorch, so it can be differentiated again."""
    z, codebook, ids = ctx.saved_tensors
    chosen = codebook.index_select(0, ids.reshape(-1)).reshape(z.shape)
    difference = z.to(grad_distance.dtype) - chosen.to(grad_distance.dtype)
    by_z = 2 * grad_distance.unsqueeze(-1) * difference
    grad_z = by_z.to(z.dtype) if ctx.needs_input_grad[0] else None
    grad_codebook = None
    if ctx.needs_input_grad[1]:
        rows = by_z.reshape(-1, by_z.shape[-1])
        total = torch.zeros_like(codebook, dtype=by_z.dtype)
        grad_codebook = total.index_add(0, ids.reshape(-1), rows, alpha=-1).to(codebook.dtype)
    return grad_z, grad_codebook


@_library.on_load
def _register() -> None:
    torch.library.register_fake("pyramid::nearest_code", _fake)
    torch.library.register_autograd("pyramid::nearest_code", _backward, setup_context=_setup_context)
