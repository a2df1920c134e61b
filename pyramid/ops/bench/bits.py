"""Cases of `bit_quantize` and `joint_bit_entropy`: against plain PyTorch, compiled or not, and lucidrains' LFQ."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from pyramid import ops
from pyramid.ops.bench.measure import Call, Case, Contest, compiled, forward_backward

COMPILED = ("joint_bit_sum",)  # the part of `joint_bit_entropy` that is a kernel


def cases(device: str) -> list[Case]:
    out = []
    for num_rows in (65536, 262144):
        for backward in (False, True):
            name = f"{num_rows}x18{' forward+backward' if backward else ''}"
            out.append(Case("bit_quantize", name, device, quantize(num_rows, 18, backward)))
    for num_bits in (14, 16, 18):
        name = f"2^{num_bits}, N = 4096, forward+backward"
        out.append(Case("joint_bit_entropy", name, device, entropy(4096, num_bits), COMPILED))
    name = "2^18 against 2^14, N = 4096, forward+backward"
    return [*out, Case("joint_bit_entropy", name, device, entropy_of_lfq(4096, 18, 14), COMPILED)]


def plain_lfq(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lookup-free quantization at temperature 1, as one writes it in PyTorch."""
    codes = x + (torch.where(x > 0, 1.0, -1.0) - x).detach()
    ids = ((x > 0).long() << torch.arange(x.shape[-1], device=x.device)).sum(-1)
    p = torch.sigmoid(4 * x)
    entropy = torch.nn.functional.binary_cross_entropy(p, p, reduction="none").sum(-1)
    return codes, ids, entropy, (x - codes.detach()).square().mean(-1)


def quantize(num_rows: int, num_bits: int, backward: bool) -> Callable[[torch.device], Contest]:
    def make(device: torch.device) -> Contest:
        x = torch.randn(num_rows, num_bits, generator=torch.Generator().manual_seed(0)).to(device)
        x.requires_grad_(backward)

        def call(function: Callable[[Tensor], tuple[Tensor, ...]]) -> Call:
            return forward_backward(function, x) if backward else lambda: function(x)

        rivals: dict[str, Call | str] = {"torch": call(plain_lfq), "torch, compiled": call(compiled(plain_lfq))}
        return Contest(call(lambda x: ops.bit_quantize(x, 1.0)), rivals)

    return make


def plain_entropy(x: Tensor) -> Tensor:
    """The joint entropy of bits at temperature 1 by our formula: one product of the probabilities of two halves."""
    on, off = torch.sigmoid(4 * x), torch.sigmoid(-4 * x)
    halves = []
    for bits in (range(x.shape[1] // 2), range(x.shape[1] // 2, x.shape[1])):
        table = x.new_ones(x.shape[0], 1)
        for i in bits:
            table = torch.cat([table * off[:, i : i + 1], table * on[:, i : i + 1]], dim=1)
        halves.append(table)
    mean = halves[0].T @ halves[1] / x.shape[0]
    return -torch.special.xlogy(mean, mean).sum()


def entropy(num_rows: int, num_bits: int) -> Callable[[torch.device], Contest]:
    """Against the same formula, which is ours, in plain PyTorch."""

    def make(device: torch.device) -> Contest:
        x = torch.randn(num_rows, num_bits, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()

        return Contest(
            forward_backward(lambda x: ops.joint_bit_entropy(x, 1.0), x),
            {
                "our product in torch": forward_backward(plain_entropy, x),
                "our product in torch, compiled": forward_backward(compiled(plain_entropy), x),
            },
        )

    return make


def entropy_of_lfq(num_rows: int, num_bits: int, their_bits: int) -> Callable[[torch.device], Contest]:
    """Ours over 2^num_bits codes, theirs over the fewer 2^their_bits: at 2^18 theirs would take 30 GB and more. Theirs
    gives the entropy of each row too, from the same N x K matrix."""

    def make(device: torch.device) -> Contest:
        x = torch.randn(num_rows, num_bits, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
        ours = forward_backward(lambda x: ops.joint_bit_entropy(x, 1.0), x)
        name = f"vector-quantize-pytorch LFQ, 2^{their_bits}"
        if importlib.util.find_spec("vector_quantize_pytorch") is None:
            return Contest(ours, {name: "not installed: pip install vector-quantize-pytorch"})
        from vector_quantize_pytorch import LFQ

        lfq = LFQ(codebook_size=2**their_bits, dim=their_bits, entropy_loss_weight=1.0).to(device).train()
        theirs = x.detach()[None, :, :their_bits].contiguous().requires_grad_()
        # exp(2 x c inv_temperature) here is exp(4 x / temperature) between the two values of a bit in ours
        call = forward_backward(lambda x: lfq(x, inv_temperature=1.0).entropy_aux_loss, theirs)
        return Contest(ours, {name: call})

    return make
