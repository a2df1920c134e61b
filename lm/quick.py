"""The forward pass of a plain Llama for inference: what transformers computes, in a third of the calls.

A pass over some ten tokens of a small model spends its time in Python and in short kernels, not in products. This walks
over the layers' own weights, so there is nothing to keep in step with them. `usable` says for which backbones it is the
same; a test compares.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, LlamaForCausalLM

from pyramid import ops


def usable(backbone: nn.Module) -> bool:
    """Whether it is a Llama as the paper has it (2302.13971): no adapters, plain rotary positions, SiLU."""
    if type(backbone) is not LlamaForCausalLM:
        return False
    config: Any = backbone.config
    rope = getattr(config, "rope_parameters", None) or {}
    layer: Any = backbone.model.layers[0] if len(backbone.model.layers) else None
    plain = layer is not None and type(layer.self_attn.q_proj) is nn.Linear and type(layer.mlp.gate_proj) is nn.Linear
    return plain and config.hidden_act == "silu" and rope.get("rope_type", "default") == "default"


def forward(
    backbone: nn.Module,
    x: Tensor,
    intervals: Tensor,
    positions: Tensor,
    cache: Cache | None,
    take: Tensor | None = None,
) -> Tensor:
    """x (B, S, dim), intervals (B, S, 4), positions (B, S) -> last hidden states (B, S, dim), as `PyramidLM.run`; with
    `take` (B, m) int64 those of these tokens alone, (B, m, dim), the last layer being passed by no others."""
    model: Any = backbone.base_model
    config = model.config
    eps, shape = config.rms_norm_eps, (config.hidden_size,)
    angles = positions[..., None].float() * model.rotary_emb.inv_freq
    angles = torch.cat([angles, angles], dim=-1)[:, None]  # (B, 1, S, D)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    for index, layer in enumerate(model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        h = F.rms_norm(x, shape, layer.input_layernorm.weight, eps)
        q, k, v = (
            project(h).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = q * cos + _turned(q) * sin, k * cos + _turned(k) * sin
        if cache is not None:
            k, v = cache.update(k, v, index)
        if take is not None and index == len(model.layers) - 1:
            x, intervals = picked(x, take), picked(intervals, take)
            q = q.gather(2, take[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
        seen = ops.interval_attention(q, k, v, intervals, scale=attention.scaling)
        x = x + attention.o_proj(seen.transpose(1, 2).flatten(2))
        h = F.rms_norm(x, shape, layer.post_attention_layernorm.weight, eps)
        x = x + mlp.down_proj(F.silu(mlp.gate_proj(h)) * mlp.up_proj(h))
    return F.rms_norm(x, shape, model.norm.weight, eps)


def picked(x: Tensor, take: Tensor) -> Tensor:
    """(B, S, D), indices (B, m) -> (B, m, D)"""
    return x.gather(1, take[..., None].expand(-1, -1, x.shape[2]))


def _turned(x: Tensor) -> Tensor:
    """The halves of the last dimension changed over, the first negated."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
