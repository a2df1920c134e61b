"""Cases of `interval_attention`: against SDPA with a mask (boolean, float) and compiled FlexAttention.

Training: chunks of levels 1, 4, 16, 64, 256 tokens; each block sees itself and all blocks before it, in both
directions. Decoding: one block, or one token, against a full cache, which SDPA does best without any mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyramid import ops
from pyramid.ops.bench.measure import Call, Case, Contest, compiled, forward_backward

LEVELS = (1, 4, 16, 64, 256)


def cases(device: str) -> list[Case]:
    out = []

    def add(name: str, make: Callable[[torch.device], Contest]) -> None:
        out.append(Case("interval_attention", name, device, make))

    if torch.device(device).type == "cpu":
        length = 8 * sum(LEVELS)
        add(f"H8 D64 S{length}", blocks(length))
        add(f"H8 D64 S{length} forward+backward", blocks(length, backward=True))
        add(f"H8/2 D64 S{length}", blocks(length, kv_heads=2))
        add(f"H8 D64 S{length} bf16", blocks(length, dtype=torch.bfloat16))
        dtype = torch.float32
    else:
        for dim in (64, 128):
            add(f"H8 D{dim} S16384 bf16", blocks(16384, dim=dim, dtype=torch.bfloat16))
            add(f"H8 D{dim} S16384 bf16 forward+backward", blocks(16384, dim=dim, dtype=torch.bfloat16, backward=True))
        add("H8/2 D64 S16384 bf16", blocks(16384, kv_heads=2, dtype=torch.bfloat16))
        add("H8 D64 S2728", blocks(2728))
        dtype = torch.bfloat16
    for count in (256, 16, 1):
        add(f"cached {count} of 4096, H8 D64", cached(count, 4096, dtype))
    return out


def block_ends(length: int) -> Tensor:
    """(S,): where the block of each query ends; the last block may be cut short."""
    sizes = torch.tensor(LEVELS * (length // sum(LEVELS) + 1))
    return sizes.cumsum(0).repeat_interleave(sizes)[:length].clamp(max=length)


def blocks(
    length: int,
    *,
    heads: int = 8,
    kv_heads: int = 8,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    backward: bool = False,
) -> Callable[[torch.device], Contest]:
    def make(device: torch.device) -> Contest:
        generator = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(1, n, length, dim, generator=generator).to(device, dtype).requires_grad_(backward)
            for n in (heads, kv_heads, kv_heads)
        )
        ends = block_ends(length).to(device)
        zeros = torch.zeros_like(ends)
        intervals = torch.stack([zeros, ends, zeros, zeros], dim=-1)[None]
        mask = torch.arange(length, device=device) < ends[:, None]
        bias = torch.zeros(length, length, device=device, dtype=dtype).masked_fill_(~mask, -torch.inf)
        grouped = heads != kv_heads

        def call(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Call:
            return forward_backward(function, q, k, v) if backward else lambda: function(q, k, v)

        def sdpa(mask: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
            return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)

        rivals: dict[str, Call | str] = {"SDPA, boolean mask": call(sdpa(mask)), "SDPA, float mask": call(sdpa(bias))}
        if backward and device.type == "cpu":
            rivals["FlexAttention, compiled"] = "has no backward on the CPU"
        else:
            rivals["FlexAttention, compiled"] = call(_flex(ends, grouped))
        return Contest(call(lambda q, k, v: ops.interval_attention(q, k, v, intervals)), rivals)

    return make


def _flex(ends: Tensor, grouped: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The block mask is made here, once."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key < ends[query]

    length = len(ends)
    mask = create_block_mask(seen, None, None, length, length, device=str(ends.device))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)  # type: ignore[return-value]

    return compiled(attend)


def cached(num_queries: int, num_keys: int, dtype: torch.dtype) -> Callable[[torch.device], Contest]:
    def make(device: torch.device) -> Contest:
        generator = torch.Generator().manual_seed(0)
        q = torch.randn(1, 8, num_queries, 64, generator=generator).to(device, dtype)
        k, v = (torch.randn(1, 8, num_keys, 64, generator=generator).to(device, dtype) for _ in range(2))
        intervals = torch.tensor([0, num_keys, 0, 0], device=device).expand(1, num_queries, 4).contiguous()
        return Contest(
            lambda: ops.interval_attention(q, k, v, intervals),
            {"SDPA, no mask": lambda: F.scaled_dot_product_attention(q, k, v)},
        )

    return make
