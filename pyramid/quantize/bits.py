"""Lookup-free quantization (LFQ, MAGVIT-v2, 2310.05737, section 3): a code is d signs, its id the packed bits.

The affine-free norm before the signs and the entropy objective follow the paper's authors' advice. A token's entropy is
a sum of binary entropies, exactly. The batch's is one matrix product, exact to 20 bits (DESIGN, "Entropy of bits,
exactly"); more bits are taken in groups of 20, whose entropies sum to an upper bound: it does not see that a bit of one
group goes with a bit of another.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyramid import ops
from pyramid.quantize.base import Quantized

JOINT_BITS = 20  # 2^20 probabilities take 4 MB


class BitQuantizer(nn.Module):
    """`bits` d: 1 to 62; bit i of an id (little-endian) is 1 where the i-th number is positive.

    `temperature` of the bits' probabilities and the weight `entropy` of the entropy objective are annealed by training,
    which also sets `process_group`: the ranks whose tokens count together in the batch's entropy.
    """

    def __init__(self, bits: int, *, temperature: float = 1.0, commitment: float = 0.25, entropy: float = 0.1) -> None:
        super().__init__()
        if not 1 <= bits <= 62:
            raise ValueError(f"BitQuantizer: bits must be from 1 to 62, got {bits}")
        self.dim, self.codebook_size = bits, 1 << bits
        self.temperature, self.commitment, self.entropy = temperature, commitment, entropy
        self.process_group: torch.distributed.ProcessGroup | None = None

    def quantize(self, x: Tensor) -> Quantized:
        x = x.float()
        x = x * x.square().mean(dim=-1, keepdim=True).add(1e-6).rsqrt()
        codes, ids, entropy, commitment = ops.bit_quantize(x, self.temperature)
        loss = self.commitment * commitment.mean()
        if self.entropy > 0:
            groups = x.reshape(-1, self.dim).split(JOINT_BITS, dim=1)
            diversity = sum(ops.joint_bit_entropy(group, self.temperature, self.process_group) for group in groups)
            loss = loss + self.entropy * (entropy.mean() - diversity)
        return Quantized(codes, ids, loss)

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        shifts = torch.arange(self.dim, device=ids.device)
        return ((ids[..., None] >> shifts) & 1).float() * 2 - 1

    def codes_to_ids(self, codes: Tensor) -> Tensor:
        shifts = torch.arange(self.dim, device=codes.device)
        return ((codes > 0).long() << shifts).sum(dim=-1)
