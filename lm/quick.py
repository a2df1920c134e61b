"""The forward pass of a plain Llama for inference: what transformers computes, in a fifth of the calls.

A pass over some ten tokens of a small model spends its time in Python and in short kernels, not in products. `pack`
lays a model's weights together once - queries, keys and values; gate and up, with the scale of the norm before them -
which takes as long as one pass; what it gives is of the weights as they were. `usable` says for which backbones it is
the same; a test compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, LlamaForCausalLM

from pyramid import ops

# x (B, S, dim), intervals (B, S, 4), positions (B, S), a cache, `take` -> last hidden states, as `PyramidLM.run`
Forward = Callable[[Tensor, Tensor, Tensor, Cache | None, Tensor | None], Tensor]


def usable(backbone: nn.Module) -> bool:
    """Whether it is a Llama as the paper has it (2302.13971): no adapters, no biases, plain rotary positions, SiLU."""
    if type(backbone) is not LlamaForCausalLM:
        return False
    config: Any = backbone.config
    rope = getattr(config, "rope_parameters", None) or {}
    layer: Any = backbone.model.layers[0] if len(backbone.model.layers) else None
    plain = layer is not None and type(layer.self_attn.q_proj) is nn.Linear and type(layer.mlp.gate_proj) is nn.Linear
    plain = plain and not config.attention_bias and not config.mlp_bias
    return plain and config.hidden_act == "silu" and rope.get("rope_type", "default") == "default"


@dataclass(frozen=True)
class _Layer:
    qkv: Tensor  # (H D + 2 H_kv D, dim), of x over its root mean square
    out: Tensor
    up: Tensor  # (2 mlp, dim), gate first, likewise
    down: Tensor
    heads: tuple[int, int]  # of queries, of keys


@torch.no_grad()
def pack(backbone: nn.Module) -> Forward:
    """A usable backbone's forward pass, for inference."""
    model: Any = backbone.base_model
    config = model.config
    layers = []
    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = [part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        heads = tuple(len(weight) // attention.head_dim for weight in qkv[:2])
        layers.append(
            _Layer(
                _scaled(qkv, layer.input_layernorm.weight),
                attention.o_proj.weight,
                _scaled([mlp.gate_proj.weight, mlp.up_proj.weight], layer.post_attention_layernorm.weight),
                mlp.down_proj.weight,
                heads,
            )
        )
    eps, scale, frequencies = config.rms_norm_eps, model.layers[0].self_attn.scaling, model.rotary_emb.inv_freq
    head_dim, last = 2 * len(frequencies), len(layers) - 1

    def forward(x: Tensor, intervals: Tensor, positions: Tensor, cache: Cache | None, take: Tensor | None) -> Tensor:
        angles = positions[..., None].float() * frequencies
        sin = angles.sin()
        cos = torch.cat([angles.cos()] * 2, dim=-1)[:, :, None].to(x.dtype)  # (B, S, 1, D)
        sin = torch.cat([-sin, sin], dim=-1)[:, :, None].to(x.dtype)
        for index, layer in enumerate(layers):
            queries, keys = layer.heads
            qkv = F.linear(_rms(x, eps), layer.qkv).unflatten(2, (-1, head_dim))
            qk, v = qkv[:, :, : queries + keys], qkv[:, :, queries + keys :].transpose(1, 2)
            qk = torch.addcmul(qk * cos, qk.roll(head_dim // 2, -1), sin).transpose(1, 2)
            q, k = qk[:, :queries], qk[:, queries:]
            if cache is not None:
                k, v = cache.update(k, v, index)
            if take is not None and index == last:
                x, intervals = picked(x, take), picked(intervals, take)
                q = q.gather(2, take[:, None, :, None].expand(-1, queries, -1, head_dim))
            seen = ops.interval_attention(q, k, v, intervals, scale=scale)
            x = x + F.linear(seen.transpose(1, 2).flatten(2), layer.out)
            gate, up = F.linear(_rms(x, eps), layer.up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        return F.rms_norm(x, (x.shape[2],), model.norm.weight, eps)

    return forward


def _scaled(weights: list[Tensor], scale: Tensor) -> Tensor:
    """Matrices (n, dim) one below the other, their columns times `scale`."""
    joined = torch.cat(weights)
    return (joined.float() * scale.float()).to(joined.dtype)


def _rms(x: Tensor, eps: float) -> Tensor:
    return x * (x.float().square().mean(dim=-1, keepdim=True) + eps).rsqrt().to(x.dtype)


def picked(x: Tensor, take: Tensor) -> Tensor:
    """(B, S, D), indices (B, m) -> (B, m, D)"""
    return x.gather(1, take[..., None].expand(-1, -1, x.shape[2]))
