"""The entropy of the mean distribution over all codes of d bits, exactly: the other term of LFQ's entropy loss.

Shapes: x (N, d); joint (2^(d / 2), 2^(d - d / 2)), the code a + b 2^(d / 2) at [a, b].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyramid.ops import _library, reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_BITS = 28


def joint_bit_entropy(
    x: Tensor, temperature: float, process_group: torch.distributed.ProcessGroup | None = None
) -> Tensor:
    """Entropy of the mean, over rows, of the joint distribution of d independent bits: over all 2^d codes, exactly.

    Bit i of a row is set with probability sigmoid(4 x_i / temperature), as in `bit_quantize`. The bits are split in two
    halves; with A (N, 2^(d/2)) and B the probabilities of each half, the mean is A^T B / N. No grouping, no sampling.

    Args:
        x: (N, d) float32, float64, bfloat16 or float16, N >= 1, 1 <= d <= 28. temperature: > 0.
        process_group: the ranks whose rows count together (each may have its own N, also none); None: this rank
            alone. The gradient is that of the sum over ranks, which DDP's averaging turns into that of one process.

    Returns:
        Scalar, nats: at most d log 2. float32 (float64 for float64).

    Raises:
        ValueError: shape, no rows, temperature <= 0. TypeError: another dtype.
    """
    if x.ndim != 2 or not 1 <= x.shape[1] <= MAX_BITS:
        raise ValueError(f"joint_bit_entropy: expected x (N, d) with 1 <= d <= {MAX_BITS}, got {tuple(x.shape)}")
    if x.shape[0] == 0 and process_group is None:
        raise ValueError("joint_bit_entropy: expected at least one row, got none")
    if x.dtype not in FLOATS:
        raise TypeError(f"joint_bit_entropy: expected float32, float64, bfloat16 or float16, got {x.dtype}")
    if not temperature > 0:
        raise ValueError(f"joint_bit_entropy: expected temperature > 0, got {temperature}")
    with torch.autocast(x.device.type, enabled=False):
        if _library.use_native(x):
            joint = torch.ops.pyramid.joint_bit_sum.default(x, float(temperature))
        else:
            joint = reference.joint_bit_sum(x, temperature)
        num_rows = torch.tensor(float(x.shape[0]), dtype=joint.dtype, device=x.device)
        if process_group is not None:
            import torch.distributed.nn.functional as distributed

            joint = distributed.all_reduce(joint, group=process_group)
            torch.distributed.all_reduce(num_rows, group=process_group)
        return reference.mean_entropy(joint, num_rows)


def _fake(x: Tensor, temperature: float) -> Tensor:
    low = x.shape[1] // 2
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(1 << low, 1 << (x.shape[1] - low), dtype=dtype)


def _fake_backward(grad: Tensor, x: Tensor, temperature: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    x, ctx.temperature = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.pyramid.joint_bit_sum_backward.default(grad, *ctx.saved_tensors, ctx.temperature), None


def _setup_context_backward(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    grad, x, ctx.temperature = inputs
    ctx.save_for_backward(grad, x)


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    """The gradient of grad_x by joint's gradient and by x: plain PyTorch through the reference, to any order."""
    with torch.enable_grad():
        # Views, so that differentiation ends at them: joint's gradient itself depends on x. The graph goes on behind.
        leaves = (t if t.requires_grad else t.detach().requires_grad_() for t in ctx.saved_tensors)
        joint_grad, x = (t.view_as(t) for t in leaves)
        grad_x = reference.joint_bit_sum_backward(joint_grad, x, ctx.temperature)
        by_grad, by_x = torch.autograd.grad(grad_x, (joint_grad, x), grad, create_graph=torch.is_grad_enabled())
    return by_grad, by_x, None


@_library.on_load
def _register() -> None:
    torch.library.register_fake("pyramid::joint_bit_sum", _fake)
    torch.library.register_fake("pyramid::joint_bit_sum_backward", _fake_backward)
    torch.library.register_autograd("pyramid::joint_bit_sum", _backward, setup_context=_setup_context)
    torch.library.register_autograd(
        "pyramid::joint_bit_sum_backward", _backward_backward, setup_context=_setup_context_backward
    )
