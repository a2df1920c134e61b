"""Softmax over a codebook without the N x K matrix: its normalizer, and the cross-entropy to words above a threshold.

The semantic loss of SPAE (2306.17842, section 3.2): every word's logit is -|z - e|^2 / tau; the targets are the words
that a teacher scores at least as high as the level's threshold. Shapes: z (..., D), codebook (K, D).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyramid.ops import _library, reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def code_logsumexp(z: Tensor, codebook: Tensor, tau: float) -> Tensor:
    """logsumexp over the codes of -|z - e|^2 / tau: the normalizer of a cross-entropy over words.

    The codes are read block by block; the gradient of z comes out of the same pass. A codebook that asks for its own
    gradient costs a second pass, in the backward.

    Args:
        z: (..., D) float32, float64, bfloat16 or float16; computed in float32 (float64 for float64), autocast or not.
        codebook: (K, D), same dtype and device, K >= 1. tau: > 0.

    Returns:
        (...) float32 (float64 for float64), differentiable by z and codebook; a second derivative is plain PyTorch and
        forms the N x K matrix.

    Raises:
        ValueError: shapes that don't fit, an empty codebook, tau <= 0, two devices. TypeError: dtypes.
    """
    _check("code_logsumexp", z, codebook, tau)
    if _library.use_native(z):
        return torch.ops.pyramid.code_logsumexp.default(z, codebook, float(tau))[0]
    return reference.code_logsumexp(z, codebook, tau)


def code_cross_entropy(z: Tensor, codebook: Tensor, scores: Tensor, threshold: float, tau: float) -> Tensor:
    """Cross-entropy of softmax_k(-|z - e_k|^2 / tau) to the words that a teacher finds in the clip.

    The targets of clip b are the words with scores[b] >= threshold, all alike: the mean, over the targets, of
    -log softmax, which is the expectation of SPAE's loss over its random draw of a target. It needs no N x K matrix:
    the mean of |z - e_t|^2 over targets is |z - m|^2 + s, m their mean and s their mean squared distance from it.

    Args:
        z: (B, ..., D), the positions of B clips. codebook: (K, D), same dtype and device. tau: > 0.
        scores: (B, K) real numbers; no gradient goes to them.

    Returns:
        (B, ...) nats, float32 (float64 for float64); 0 for the positions of a clip without targets.

    Raises:
        ValueError: shapes that don't fit, an empty codebook, tau <= 0, two devices. TypeError: dtypes.
    """
    _check("code_cross_entropy", z, codebook, tau)
    if z.ndim < 2 or tuple(scores.shape) != (z.shape[0], codebook.shape[0]):
        raise ValueError(
            f"code_cross_entropy: expected z (B, ..., D) and scores (B, K) = ({z.shape[0]}, {codebook.shape[0]}), "
            f"got {tuple(z.shape)} and {tuple(scores.shape)}"
        )
    if scores.device != z.device:
        raise ValueError(f"code_cross_entropy: expected one device, got z on {z.device}, scores on {scores.device}")
    normalizer = code_logsumexp(z, codebook, tau)
    with torch.autocast(z.device.type, enabled=False):
        codes = codebook.to(normalizer.dtype)
        center = codes.detach().mean(0)
        codes = codes - center
        target = (scores >= threshold).to(codes.dtype)
        count = target.sum(-1, keepdim=True)  # (B, 1)
        share = target / count.clamp_min(1)
        mean = share @ codes
        spread = (share @ codes.square().sum(-1) - mean.square().sum(-1)).clamp_min(0)
        lead = (len(z), *[1] * (z.ndim - 2))
        off = z.to(codes.dtype) - center - mean.reshape(*lead, -1)
        loss = normalizer + (off.square().sum(-1) + spread.reshape(lead)) / tau
        return loss * (count > 0).reshape(lead)


def _check(who: str, z: Tensor, codebook: Tensor, tau: float) -> None:
    if z.ndim < 1 or codebook.ndim != 2 or z.shape[-1] != codebook.shape[1] or codebook.numel() == 0:
        raise ValueError(
            f"{who}: expected z (..., D) and codebook (K, D) with K, D >= 1, "
            f"got {tuple(z.shape)} and {tuple(codebook.shape)}"
        )
    if z.dtype not in FLOATS or z.dtype != codebook.dtype:
        raise TypeError(
            f"{who}: expected z and codebook of one dtype among float32, float64, bfloat16 and float16, "
            f"got {z.dtype} and {codebook.dtype}"
        )
    if z.device != codebook.device:
        raise ValueError(f"{who}: expected one device, got z on {z.device} and codebook on {codebook.device}")
    if not tau > 0:
        raise ValueError(f"{who}: expected tau > 0, got {tau}")


def _fake(z: Tensor, codebook: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    return z.new_empty(z.shape[:-1], dtype=dtype), z.new_empty(z.shape, dtype=dtype)


def _fake_backward(grad: Tensor, z: Tensor, codebook: Tensor, logsumexp: Tensor, tau: float) -> Tensor:
    return codebook.new_empty(codebook.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    z, codebook, ctx.tau = inputs
    logsumexp, pull = output
    ctx.mark_non_differentiable(pull)
    ctx.save_for_backward(z, codebook, logsumexp, pull)


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, Tensor | None, None]:
    z, codebook, logsumexp, pull = ctx.saved_tensors
    grad_z = grad_codebook = None
    if torch.is_grad_enabled():  # a second derivative is asked for: only plain PyTorch has it
        if ctx.needs_input_grad[0]:
            away = reference.mean_code(z, codebook, ctx.tau) - z.to(grad.dtype)
            grad_z = (2 / ctx.tau * grad.unsqueeze(-1) * away).to(z.dtype)
        if ctx.needs_input_grad[1]:
            normalizer = reference.code_logsumexp(z, codebook, ctx.tau)
            grad_codebook = reference.code_logsumexp_backward(grad, z, codebook, normalizer, ctx.tau)
        return grad_z, grad_codebook, None
    if ctx.needs_input_grad[0]:
        grad_z = (2 / ctx.tau * grad.unsqueeze(-1) * pull).to(z.dtype)
    if ctx.needs_input_grad[1]:
        op = torch.ops.pyramid.code_logsumexp_backward.default
        grad_codebook = op(grad, z, codebook, logsumexp, ctx.tau)
    return grad_z, grad_codebook, None


@_library.on_load
def _register() -> None:
    torch.library.register_fake("pyramid::code_logsumexp", _fake)
    torch.library.register_fake("pyramid::code_logsumexp_backward", _fake_backward)
    torch.library.register_autograd("pyramid::code_logsumexp", _backward, setup_context=_setup_context)
