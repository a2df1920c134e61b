"""Lookup-free quantization to bits, with its per-sample entropy and commitment (LFQ of MAGVIT-v2, 2310.05737).

Shapes: x (..., d), codes (..., d), ids, entropy and commitment (...). The entropy of the *mean* distribution, the other
term of LFQ's entropy loss, is `joint_bit_entropy`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyramid.ops import _library, reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_BITS = 62
MIN_TEMPERATURE = 4 / torch.finfo(torch.float32).max  # below it the scale of the logits is infinite


class BitQuantized(NamedTuple):
    codes: Tensor  # (..., d) -1 or 1, the dtype of x
    ids: Tensor  # (...) int64
    entropy: Tensor  # (...) float32, float64 for float64
    commitment: Tensor  # (...) the same


def bit_quantize(x: Tensor, temperature: float) -> BitQuantized:
    """Quantize each number to its sign; pack the signs; say how undecided and how far off they were. One pass.

    Args:
        x: (..., d) float32, float64, bfloat16 or float16, 1 <= d <= 62. Arithmetic is in float32 (float64 for float64).
        temperature: > 0, at least 1.2e-38. Code c in {-1, 1}^d has the logit 2 x . c / temperature, so bit i is set
            with probability sigmoid(4 x_i / temperature), whatever the other bits.

    Returns:
        codes (..., d) in {-1, 1}, dtype of x: 1 where x > 0, else -1 (0 and NaN too); gradient straight through.
        ids (...) int64: bit i (little-endian) is set where x_i > 0.
        entropy (...): of the distribution above over all 2^d codes, in nats: the sum of d binary entropies, exactly.
        commitment (...): mean_i (x_i - code_i)^2, the code taken as constant.

    Raises:
        ValueError: shape or temperature. TypeError: another dtype.
    """
    if x.ndim < 1 or not 1 <= x.shape[-1] <= MAX_BITS:
        raise ValueError(f"bit_quantize: expected x (..., d) with 1 <= d <= {MAX_BITS}, got {tuple(x.shape)}")
    if x.dtype not in FLOATS:
        raise TypeError(f"bit_quantize: expected float32, float64, bfloat16 or float16, got {x.dtype}")
    if not temperature > 0:
        raise ValueError(f"bit_quantize: expected temperature > 0, got {temperature}")
    if temperature < MIN_TEMPERATURE:
        raise ValueError(f"bit_quantize: expected temperature >= {MIN_TEMPERATURE:.2g}, got {temperature}")
    if _library.use_native(x):
        return BitQuantized(*torch.ops.pyramid.bit_quantize.default(x, float(temperature)))
    return BitQuantized(*reference.bit_quantize(x, temperature))


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _fake(x: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, dtype = x.shape[:-1], _compute_dtype(x)
    codes = torch.empty_like(x, memory_format=torch.contiguous_format)
    ids = x.new_empty(rows, dtype=torch.int64)
    return codes, ids, x.new_empty(rows, dtype=dtype), x.new_empty(rows, dtype=dtype)


def _fake_backward(
    x: Tensor,
    temperature: float,
    grad_codes: Tensor | None,
    grad_entropy: Tensor | None,
    grad_commitment: Tensor | None,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Any) -> None:
    x, ctx.temperature = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x)


def _backward(
    ctx: Any, grad_codes: Tensor | None, _: Any, grad_entropy: Tensor | None, grad_commitment: Tensor | None
) -> tuple[Tensor | None, None]:
    (x,) = ctx.saved_tensors
    grads = (grad_codes, grad_entropy, grad_commitment)
    if all(grad is None for grad in grads):
        return None, None
    return torch.ops.pyramid.bit_quantize_backward.default(x, ctx.temperature, *grads), None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.temperature, *grads = inputs
    ctx.save_for_backward(x, *grads)


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of grad_x by x and by the incoming gradients: plain PyTorch, so it goes on to any order."""
    x, grad_codes, grad_entropy, grad_commitment = ctx.saved_tensors
    dtype, scale = _compute_dtype(x), 4 / ctx.temperature
    wide, up = x.to(dtype), grad.to(dtype)
    y, off = wide * scale, wide - torch.where(wide > 0, 1.0, -1.0).to(dtype)
    p, q = torch.sigmoid(y), torch.sigmoid(-y)
    by_x = torch.zeros_like(wide)
    by_codes = by_entropy = by_commitment = None
    if grad_codes is not None:
        by_codes = grad
    if grad_entropy is not None:
        by_x = by_x - grad_entropy.unsqueeze(-1) * scale**2 * p * q * (1 + y * (q - p)) * up
        by_entropy = -(scale * y * p * q * up).sum(-1)
    if grad_commitment is not None:
        by_x = by_x + grad_commitment.unsqueeze(-1) * 2 / x.shape[-1] * up
        by_commitment = (2 / x.shape[-1] * off * up).sum(-1)
    return by_x.to(x.dtype), None, by_codes, by_entropy, by_commitment


@_library.on_load
def _register() -> None:
    torch.library.register_fake("pyramid::bit_quantize", _fake)
    torch.library.register_fake("pyramid::bit_quantize_backward", _fake_backward)
    torch.library.register_autograd("pyramid::bit_quantize", _backward, setup_context=_setup_context)
    torch.library.register_autograd(
        "pyramid::bit_quantize_backward", _backward_backward, setup_context=_setup_context_backward
    )
