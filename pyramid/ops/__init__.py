"""The operators. Each has a plain PyTorch reference (reference.py: read it first); some are also compiled (csrc/)."""

from pyramid.ops._library import backend, build_info, current_backend
from pyramid.ops.bit_quantize import BitQuantized, bit_quantize
from pyramid.ops.code_logsumexp import code_cross_entropy, code_logsumexp
from pyramid.ops.interval_attention import interval_attention
from pyramid.ops.nearest_code import NearestCode, nearest_code
from pyramid.ops.reference import (
    joint_bit_entropy,
    level_resample,
    pyramid_sum,
    straight_through,
)

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
