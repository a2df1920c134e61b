"""The operators. Each has a plain PyTorch reference (reference.py: read it first) and a compiled form (csrc/)."""

from pyramid.ops._library import backend, build_info, current_backend
from pyramid.ops.bit_quantize import BitQuantized, bit_quantize
from pyramid.ops.code_logsumexp import code_cross_entropy, code_logsumexp
from pyramid.ops.interval_attention import interval_attention
from pyramid.ops.joint_bit_entropy import joint_bit_entropy
from pyramid.ops.level_resample import level_resample
from pyramid.ops.nearest_code import NearestCode, nearest_code
from pyramid.ops.pyramid_sum import pyramid_sum
from pyramid.ops.reference import straight_through

__all__ = [
    "backend",
    "current_backend",
    "build_info",
    "nearest_code",
    "NearestCode",
    "bit_quantize",
    "BitQuantized",
    "code_logsumexp",
    "code_cross_entropy",
    "joint_bit_entropy",
    "interval_attention",
    "pyramid_sum",
    "level_resample",
    "straight_through",
]
